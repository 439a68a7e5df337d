"""Beam search of many prompts in lock step: no requests, no scheduler, no walk per beam.

A mention has a column of Growing while its search runs; finished mentions leave, and waiting ones join in the
same pass of the model. A round (`Lockstep.step`): the result of the last one is read; finished names are
returned; blocks of forked beams are copied; one pass computes the pending tokens of beams and the prompts of
mentions that join, as many tokens as it has room for (a long prompt takes several passes); all beams grow.
The host waits for the device once, at the beginning: the result of a step is read in the next one.

There is one Lockstep for every tree, width and kind of score. They share the arena, and are stepped in turn.
A search of another width than the configured one has separate rounds, made when first needed; so has a new
version's tree. On a GPU each has two parts of half the columns: while the host reads the result of one, the
device computes the other. Everything here belongs to the engine's thread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gemel_ray.engine.columns import Arena, Columns, Mention, Reading, private_blocks
from gemel_ray.engine.growing import FlatTree, Growing, RoundResult
from gemel_ray.engine.vllm.recorded import Replayed
from gemel_ray.engine.vllm.seam import Seam
from gemel_ray.engine.work import Candidate, Outcome, settle
from gemel_ray.knowledge.prefix_tree import PrefixTree

Whole = npt.NDArray[np.int64]
Part = tuple[int, Reading, int]  # as Columns.readings gives them
Settled = tuple[Outcome[list[Candidate]], list[Candidate] | Exception]
_UNUSED = 4  # empty rounds that are kept for later searches


class _Pending(NamedTuple):
    """Beams with tokens to be computed, int64 [rows]: the column, the index among its beams, the place of
    keys and values, the tokens of the name that are there, and those to be computed."""

    column: Whole
    beam: Whole
    place: Whole
    cached: Whole
    tokens: Whole

    def split(self, tokens: int, rows: int) -> Iterator[_Pending]:
        """Parts of at most `tokens` and `rows` each; at least one, which may be empty."""
        start = 0
        while start < len(self.tokens) or not start:
            ends = np.cumsum(self.tokens[start : start + rows])
            end = start + max(1, int(np.searchsorted(ends, tokens, side="right")))
            yield _Pending(*(array[start:end] for array in self))
            start = end


_NOTHING = _Pending(*np.empty((5, 0), np.int64))


class Lockstep:
    """The rounds of one tree, width and kind of score. `replayed`: growing is a CUDA graph."""

    def __init__(self, seam: Seam, growing: Growing, columns: Columns, *, replayed: bool) -> None:
        self.seam, self.growing, self.columns = seam, growing, columns
        self._grown = Replayed(growing.round) if replayed else growing.round
        self._result: Tensor | None = None
        self._widest = 0  # the greatest number of children of a pending node

    @torch.inference_mode()
    def step(self) -> None:
        """Make a round: one more token for all beams; waiting mentions join if there is room."""
        *before, last = self._read_result().split(self.seam.tokens, self.seam.rows)
        room = self.seam.tokens - int(last.tokens.sum()), self.seam.rows - len(last.tokens)
        readings = list(self.columns.readings(*room))
        if self.columns.copies:
            self.seam.copy(np.array(self.columns.copies))
            self.columns.copies.clear()
        for asking in before:  # rare: very wide beams, or many long forced chains at once
            self._compute(asking, [])
        if len(last.tokens) or readings:
            self._compute(last, readings)
        self._send_result(self._grown())

    def _send_result(self, result: Tensor) -> None:
        """Start the copy of the result to the host."""
        if result.device.type == "cpu":
            self._result = result
            return
        if self._result is None:
            self._result, self._copied = (
                torch.empty_like(result, device="cpu", pin_memory=True),
                torch.cuda.Event(),
            )
        self._result.copy_(result, non_blocking=True)
        self._copied.record()

    def _read_result(self) -> _Pending:
        """Read the result of the last step: finished mentions leave, forks are to be copied; the pending
        beams."""
        columns = self.columns
        if self._result is None or not (growing := columns.growing()):
            return _NOTHING
        if self.seam.device.type != "cpu":
            self._copied.synchronize()
        result = RoundResult.of(self._result.numpy(), self.growing.width)
        others = np.ones(self.growing.columns, bool)
        others[growing] = False
        result.pending[others], result.source[others] = 0, -1
        ended = (self._end(column, result) for column in growing if not result.alive[column])
        settle([outcome for outcome in ended if outcome is not None])
        forked, asking = np.nonzero(result.source >= 0), np.nonzero(result.pending)
        columns.fork(forked[0], result.source[forked], result.place[forked], result.cached[forked])
        for column in columns.occupants.keys() & set(asking[0].tolist()):
            columns.occupants[column].mention.usage.decoded += int(result.pending[column].sum())
        self._widest = result.widest
        return _Pending(
            asking[0], asking[1], result.place[asking], result.cached[asking], result.pending[asking]
        )

    def _end(self, column: int, result: RoundResult) -> Settled | None:
        """Finish a column whose beams have ended: its occupant leaves, with this outcome, or stays for the
        names to be judged."""
        occupant, rows = self.columns.occupants[column], result.found[column].T.tolist()
        occupant.found += [
            Candidate(int(leaf), total, score) for leaf, total, score in rows if score > -np.inf
        ]
        broken = result.broken[column] or not occupant.found
        if not broken and self.columns.judge(column):
            return None
        fault = ValueError("the language model's numbers for this prompt are not finite")
        return self.columns.free(column).mention.outcome, fault if broken else occupant.found

    def _compute(self, asking: _Pending, readings: list[Part]) -> None:
        """Compute one pass over these beams and parts of prompts, and score the children of both."""
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

    def _score(self, hidden: Tensor, asking: _Pending, read: Whole, begun: Whole) -> None:
        """Score the children of beams, whose rows come first, and of the roots of columns that were `read` in
        these rows. The output weights are read once for all; on a CPU only those of the children, if scores
        are among children."""
        growing, beams = self.growing, len(asking.tokens)
        column, beam, begins, root, scored, listed = self.seam.upload(
            asking.column, asking.beam, begun, 0 * begun, np.concatenate([np.arange(beams), read]),
            self._listed(begun),
        )  # fmt: skip
        tokens = None
        if growing.renormalise and self.seam.output is not None:
            tokens = growing.tree.following(torch.cat([growing.node[column, beam], root]))
        of_beams, of_roots = self.seam.logits(hidden[scored], tokens).split([beams, len(read)])
        if len(column):
            self._answer(column, beam, of_beams, self._widest, tokens)
        if len(begins):
            growing.begin(begins, listed if len(listed) else None)
            self._answer(begins, root, of_roots, growing.tree.fan, tokens)

    def _answer(
        self, column: Tensor, beam: Tensor, logits: Tensor, widest: int, tokens: Tensor | None
    ) -> None:
        growing = self.growing
        listed = growing.listing(column) if self.columns.judging else None
        best = growing.best(logits, growing.node[column, beam], widest, listed, tokens)
        growing.answer(column, beam, *best)

    def _listed(self, columns: Whole) -> Whole:
        """The names that are judged in these columns, for Growing; empty if no names are judged in any
        column."""
        if not self.columns.judging:
            return np.empty(0, np.int64)
        judging = [self.columns.occupants[column].judging for column in columns.tolist()]
        return self.growing.tree.listed(judging, self.growing.width)

    def _embeddings(self, asking: _Pending, readings: list[Part]) -> Tensor:
        """The embeddings of the tokens of beams, then of the parts of prompts. They are made on the device:
        ids are sent there, and pictures are written to their places."""
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
    """The kind of a beam search. `renormalise` False: scores are over the whole vocabulary."""

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
    """All rounds: `columns` mentions at once, of `width` beams; of wider searches fewer, with the same number
    of rows. They are in `parts` that take turns; `replayed`: see Lockstep."""

    def __init__(
        self, seam: Seam, arena: Arena, columns: int, width: int, *, parts: int = 1, replayed: bool = False
    ) -> None:
        self.seam, self.arena, self.parts, self.replayed = seam, arena, parts, replayed
        self._columns, self._rows = columns, columns * (width + 1)
        self._lanes: dict[Search, _Lane] = {}  # the least recently used first
        self._trees: dict[PrefixTree, FlatTree] = {}
        self.rounds = 0  # made, of all Locksteps

    @property
    def busy(self) -> bool:
        return any(lane.busy for lane in tuple(self._lanes.values()))  # called from other threads, too

    def fits(self, search: Search, beginning: int, rest: int) -> bool:
        """Whether the empty arena has room for such a prompt."""
        arena = self.arena
        private = search.width * private_blocks(arena, search.tree.depth)
        return arena.blocks(beginning) + rest // arena.size + 1 + private <= arena.all

    def add(self, search: Search, mention: Mention) -> None:
        lane = self._lanes.pop(search, None) or self._made(search)
        self._lanes[search] = lane
        lane.waiting[mention] = None

    def drop(self, search: Search, mention: Mention) -> None:
        """Remove a mention whose caller has left."""
        if (lane := self._lanes.get(search)) is not None:
            for part in lane.parts:
                part.columns.drop(mention)

    def step(self) -> None:
        """Make a round of each Lockstep that has mentions."""
        for lane in self._lanes.values():
            for part in lane.parts:
                if part.columns.busy:
                    part.step()
                    self.rounds += 1

    def waiting(self) -> list[Mention]:
        """All mentions without a result."""
        found = []
        for lane in self._lanes.values():
            found += list(lane.waiting)
            found += [occupant.mention for part in lane.parts for occupant in part.columns.occupants.values()]
        return found

    def retire(self, tree: PrefixTree) -> None:
        """Free the resources of `tree`, under which there will be no more searches."""
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
        del self._lanes[search]
        for tree in self._trees.keys() - {known.tree for known in self._lanes}:
            del self._trees[tree]
