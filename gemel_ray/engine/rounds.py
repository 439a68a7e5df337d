"""Beam search of many prompts in lock step: no requests, no scheduler, no walk per beam.

A mention has a column of Growing for as long as its search runs; who is finished leaves, and who waits joins
in the same pass of the model. A round (`Lockstep.step`): what the last one told is read; names that are
finished go out; blocks of beams that forked are copied; one pass computes the beams that ask and the prompts
of those who join, as many of their tokens as it has room for (a long prompt is read in several); all beams
grow. The host waits for the device once, at the beginning: what a step has started is told to the next one.

There is one Lockstep for every tree, width and way to score that is asked for. They share the arena, and are
stepped in turn. A search of another width than the configured one has rounds of its own, made when first
asked for; so has a renewed tree, beside the former one's. On a GPU each has two parts of half the columns:
while the host reads what one has told, the device computes the other. Everything here belongs to the engine's
thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gemel_ray.engine.columns import Arena, Columns, Mention, Reading, private_blocks
from gemel_ray.engine.growing import FlatTree, Growing, Told
from gemel_ray.engine.vllm.seam import Seam
from gemel_ray.engine.work import Candidate
from gemel_ray.knowledge.prefix_tree import PrefixTree

Whole = npt.NDArray[np.int64]
Part = tuple[int, Reading, int]  # as Columns.readings gives them
_UNUSED = 4  # rounds that nobody is in, kept for who may come


class Replayed:
    """A function of a GPU's small kernels, launched at once: recorded as a CUDA graph, and replayed. `call`
    reads and writes the same tensors whenever it is called, and no host value. At first it runs as it is, so
    that what is loaded when first used is there; the second time it is recorded."""

    def __init__(self, call: Callable[[], Tensor]) -> None:
        self._call, self._called = call, False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> Tensor:
        if not self._called:
            self._called = True
            return self._call()
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # Other threads of this process may use the GPU meanwhile, as CLIP's does.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._made = self._call()
        self._graph.replay()
        return self._made


class _Asking(NamedTuple):
    """Beams whose nodes are asked about, int64 [rows]: column and place among its beams, where their keys and
    values stand, tokens of the name there already, and those to be computed."""

    column: Whole
    beam: Whole
    place: Whole
    cached: Whole
    tokens: Whole

    def split(self, tokens: int, rows: int) -> Iterator[_Asking]:
        """Of at most so many each; one at least, if it is empty."""
        start = 0
        while start < len(self.tokens) or not start:
            ends = np.cumsum(self.tokens[start : start + rows])
            end = start + max(1, int(np.searchsorted(ends, tokens, side="right")))
            yield _Asking(*(array[start:end] for array in self))
            start = end


_NOBODY = _Asking(*np.empty((5, 0), np.int64))


class Lockstep:
    """The rounds of one tree, width and way to score. `replayed`: what grows is a CUDA graph."""

    def __init__(self, seam: Seam, growing: Growing, columns: Columns, *, replayed: bool) -> None:
        self.seam, self.growing, self.columns = seam, growing, columns
        self.rounds = 0
        self._grown = Replayed(growing.round) if replayed else growing.round
        self._told: Tensor | None = None
        self._widest = 0  # children of a node that is asked about

    @torch.inference_mode()
    def step(self) -> None:
        """One token more for all beams; who waits joins, as many as there is room for."""
        *before, last = self._heard().split(self.seam.tokens, self.seam.rows)
        room = self.seam.tokens - int(last.tokens.sum()), self.seam.rows - len(last.tokens)
        readings = list(self.columns.readings(*room))
        if self.columns.copies:
            self.seam.copy(np.array(self.columns.copies))
            self.columns.copies.clear()
        for asking in before:  # rare: very wide beams, or many long forced chains at once
            self._compute(asking, [])
        if len(last.tokens) or readings:
            self._compute(last, readings)
        self._tell(self._grown())
        self.rounds += 1

    def _tell(self, told: Tensor) -> None:
        """Start the one copy to the host."""
        if told.device.type == "cpu":
            self._told = told
            return
        if self._told is None:
            self._told, self._copied = (
                torch.empty_like(told, device="cpu", pin_memory=True),
                torch.cuda.Event(),
            )
        self._told.copy_(told, non_blocking=True)
        self._copied.record()

    def _heard(self) -> _Asking:
        """Read what the last step told: who is done leaves, forks are to be copied; who asks now."""
        columns = self.columns
        if self._told is None or not (growing := columns.growing()):
            return _NOBODY
        if self.seam.device.type != "cpu":
            self._copied.synchronize()
        said = Told.of(self._told.numpy(), self.growing.width)
        others = np.ones(self.growing.columns, bool)
        others[growing] = False
        said.pending[others], said.source[others] = 0, -1
        for column in growing:
            if not said.alive[column]:
                self._end(column, said)
        forked, asking = np.nonzero(said.source >= 0), np.nonzero(said.pending)
        columns.fork(forked[0], said.source[forked], said.place[forked], said.cached[forked])
        for column in columns.guests.keys() & set(asking[0].tolist()):
            columns.guests[column].mention.usage.decoded += int(said.pending[column].sum())
        self._widest = said.widest
        return _Asking(asking[0], asking[1], said.place[asking], said.cached[asking], said.pending[asking])

    def _end(self, column: int, said: Told) -> None:
        """The column's beams have ended: its guest leaves, or stays for the names to be judged."""
        guest, rows = self.columns.guests[column], said.found[column].T.tolist()
        guest.found += [Candidate(int(leaf), total, score) for leaf, total, score in rows if score > -np.inf]
        broken = said.broken[column] or not guest.found
        if not broken and self.columns.judge(column):
            return
        fault = ValueError("the language model's numbers for this prompt are not finite")
        self.columns.free(column).mention.outcome.tell(fault if broken else guest.found)

    def _compute(self, asking: _Asking, readings: list[Part]) -> None:
        """One pass over these beams and parts of prompts. Scores the children of both."""
        columns, rows = self.columns, len(asking.tokens)
        embeddings = self._embeddings(asking, readings)
        start = np.array([reading.start + reading.done for _, reading, _ in readings], np.int64)
        start = np.concatenate([columns.prompt[asking.column] + asking.cached, start])
        count = np.concatenate([asking.tokens, [tokens for _, _, tokens in readings]]).astype(np.int64)
        most = columns.arena.blocks(int((start + count).max()))
        table = np.zeros((len(count), most), np.int32)
        table[:rows] = columns.table[asking.column, asking.place, :most]
        for i, (_, reading, _) in enumerate(readings, rows):
            table[i, : len(reading.blocks)] = reading.blocks[:most]
        alike = columns.alike({*asking.column.tolist(), *(column for column, _, _ in readings)})
        hidden = self.seam.forward(embeddings, start, count, table, alike)

        done = [(i, part[0]) for i, part in enumerate(readings, rows) if columns.read(*part)]
        if rows or done:
            self._score(hidden, asking, *np.array(done, np.int64).reshape(-1, 2).T)

    def _score(self, hidden: Tensor, asking: _Asking, read: Whole, begun: Whole) -> None:
        """The children of beams, whose rows come first, and of the roots of columns that have been `read` in
        these rows. The output's weights are gone through once for all."""
        growing, beams = self.growing, len(asking.tokens)
        column, beam, begins, root, scored, listed = self.seam.upload(
            asking.column, asking.beam, begun, 0 * begun, np.concatenate([np.arange(beams), read]),
            self._listed(begun),
        )  # fmt: skip
        of_beams, of_roots = self.seam.logits(hidden[scored]).split([beams, len(read)])
        if len(column):
            self._answer(column, beam, of_beams, self._widest)
        if len(begins):
            growing.begin(begins, listed if len(listed) else None)
            self._answer(begins, root, of_roots, growing.tree.fan)

    def _answer(self, column: Tensor, beam: Tensor, logits: Tensor, widest: int) -> None:
        growing = self.growing
        listed = growing.listing(column) if self.columns.judging else None
        growing.answer(column, beam, *growing.best(logits, growing.node[column, beam], widest, listed))

    def _listed(self, columns: Whole) -> Whole:
        """For Growing, the names that are judged in these columns; empty where none are anywhere."""
        if not self.columns.judging:
            return np.empty(0, np.int64)
        judging = [self.columns.guests[column].judging for column in columns.tolist()]
        return self.growing.tree.listed(judging, self.growing.width)

    def _embeddings(self, asking: _Asking, readings: list[Part]) -> Tensor:
        """Of the tokens of beams, and behind them of the parts of prompts. Made on the device: ids go there,
        and pictures are written over their places."""
        path = self.growing.path
        ends = np.cumsum(asking.tokens)
        first = (asking.column * path.shape[1] + asking.beam) * path.shape[2] + asking.cached
        among = np.repeat(first - ends + asking.tokens, asking.tokens) + np.arange(asking.tokens.sum())
        parts = [reading.written.part(reading.done, reading.done + tokens) for _, reading, tokens in readings]
        beams, prompts = self.seam.upload(
            among, np.concatenate([np.empty(0, np.int64), *(p[0] for p in parts)])
        )
        embeddings = self.seam.embed(torch.cat([path.view(-1)[beams], prompts]))
        places, vectors, start = list[Whole](), list[Tensor](), len(among)
        for ids, pictures in parts:
            places += [start + place + np.arange(len(over)) for place, over in pictures]
            vectors += [over for _, over in pictures]
            start += len(ids)
        if vectors:
            (at,) = self.seam.upload(np.concatenate(places))
            embeddings.index_copy_(0, at, self.seam.send(torch.cat(vectors)))
        return embeddings


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
