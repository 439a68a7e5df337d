"""All rounds of an engine: one Lockstep for every tree, width and way to score that is asked for.

They share the arena, and are stepped in turn. A search of another width than the configured one has rounds of
its own, made when first asked for; so has a renewed tree, beside the former one's. On a GPU each has two
parts of half the columns: while the host reads what one has told, the device computes the other. Everything
here belongs to the engine's thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from gemel_ray.engine.arena import Arena
from gemel_ray.engine.columns import Columns, Mention, private_blocks
from gemel_ray.engine.flat_tree import FlatTree
from gemel_ray.engine.growing import Growing
from gemel_ray.engine.lockstep import Lockstep
from gemel_ray.engine.seam import Seam
from gemel_ray.knowledge.prefix_tree import PrefixTree

_UNUSED = 4  # rounds that nobody is in, kept for who may come


@dataclass(frozen=True, slots=True)
class Search:
    """What a beam search is like. `renormalise` False: scores are over the whole vocabulary."""

    tree: PrefixTree
    width: int
    penalty: float
    renormalise: bool


@dataclass(frozen=True, slots=True)
class _Lane:
    waiting: dict[Mention, None]
    parts: list[Lockstep]

    @property
    def busy(self) -> bool:
        return any(part.columns.busy for part in self.parts)


class Rounds:
    """`columns` mentions at once, of `width` beams; of wider searches as many as make no more rows. They are
    in `parts` that take turns; `replayed` as of Lockstep."""

    def __init__(
        self, seam: Seam, arena: Arena, columns: int, width: int, *, parts: int = 1, replayed: bool = False
    ) -> None:
        self.seam, self.arena, self.parts, self.replayed = seam, arena, parts, replayed
        self._columns, self._rows = columns, columns * (width + 1)
        self._lanes: dict[Search, _Lane] = {}  # the one longest unused first
        self._trees: dict[PrefixTree, FlatTree] = {}
        self._ended = 0  # rounds of lanes that are no more

    @property
    def busy(self) -> bool:
        return any(lane.busy for lane in tuple(self._lanes.values()))  # asked by other threads, too

    @property
    def rounds(self) -> int:
        lanes = tuple(self._lanes.values())
        return self._ended + sum(part.rounds for lane in lanes for part in lane.parts)

    def fits(self, search: Search, beginning: int, own: int) -> bool:
        """Whether the arena could take such a prompt, were it alone."""
        arena = self.arena
        private = search.width * private_blocks(arena, search.tree.depth)
        return arena.blocks(beginning) + own // arena.size + 1 + private <= arena.all

    def add(self, search: Search, mention: Mention) -> None:
        lane = self._lanes.pop(search, None) or self._made(search)
        self._lanes[search] = lane
        lane.waiting[mention] = None

    def drop(self, search: Search, mention: Mention) -> None:
        """Its caller has left."""
        if (lane := self._lanes.get(search)) is not None:
            for part in lane.parts:
                part.columns.drop(mention)

    def step(self) -> None:
        """A round of each that somebody is in."""
        for lane in self._lanes.values():
            for part in lane.parts:
                if part.columns.busy:
                    part.step()

    def waiting(self) -> list[Mention]:
        """Everybody who has no answer yet."""
        found = []
        for lane in self._lanes.values():
            found += list(lane.waiting)
            found += [guest.mention for part in lane.parts for guest in part.columns.guests.values()]
        return found

    def retire(self, tree: PrefixTree) -> None:
        """Nobody will be searched under `tree` any more."""
        for search in [s for s, lane in self._lanes.items() if s.tree is tree and not lane.busy]:
            self._end(search)

    def _made(self, search: Search) -> _Lane:
        unused = [known for known, lane in self._lanes.items() if not lane.busy]
        for known in unused[: max(0, len(unused) - _UNUSED + 1)]:
            self._end(known)
        if search.tree not in self._trees:
            self._trees[search.tree] = FlatTree(search.tree, self.seam.device)
        waiting: dict[Mention, None] = {}
        columns = max(1, min(self._columns, self._rows // (search.width + 1)) // self.parts)
        return _Lane(waiting, [self._lockstep(search, waiting, columns) for _ in range(self.parts)])

    def _lockstep(self, search: Search, waiting: dict[Mention, None], columns: int) -> Lockstep:
        tree, width = self._trees[search.tree], search.width
        growing = Growing(tree, columns, width, penalty=search.penalty, renormalise=search.renormalise)
        length = self.seam.length
        seats = Columns(self.arena, waiting, columns, width, depth=tree.depth, length=length)
        return Lockstep(self.seam, growing, seats, replayed=self.replayed)

    def _end(self, search: Search) -> None:
        self._ended += sum(part.rounds for part in self._lanes.pop(search).parts)
        for tree in self._trees.keys() - {known.tree for known in self._lanes}:
            del self._trees[tree]
