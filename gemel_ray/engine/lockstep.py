"""Beam search of many prompts in lock step: no requests, no scheduler, no walk per beam.

A mention has a column of Growing for as long as its search runs; who is finished leaves, and who waits joins
in the same pass of the model. A round (`step`): what the last one told is read; names that are finished go
out; blocks of beams that forked are copied; one pass computes the beams that ask and the prompts of those
who join, as many of their tokens as it has room for (a long prompt is read in several); all beams grow. The
host waits for the device once, at the beginning: what a step has started is told to the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gemel_ray.engine.arena import Reading
from gemel_ray.engine.columns import Columns
from gemel_ray.engine.growing import Growing, Told
from gemel_ray.engine.replay import Replayed
from gemel_ray.engine.search import Candidate

if TYPE_CHECKING:
    from gemel_ray.engine.seam import Seam

Whole = npt.NDArray[np.int64]
Part = tuple[int, Reading, int]  # as Columns.readings gives them


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
                self._leave(column, said)
        forked, asking = np.nonzero(said.source >= 0), np.nonzero(said.pending)
        columns.fork(forked[0], said.source[forked], said.place[forked], said.cached[forked])
        for column in columns.guests.keys() & set(asking[0].tolist()):
            columns.guests[column].mention.usage.decoded += int(said.pending[column].sum())
        self._widest = said.widest
        return _Asking(asking[0], asking[1], said.place[asking], said.cached[asking], said.pending[asking])

    def _leave(self, column: int, said: Told) -> None:
        outcome = self.columns.free(column).mention.outcome
        rows = said.found[column].T.tolist()
        found = [Candidate(int(leaf), total, score) for leaf, total, score in rows if score > -np.inf]
        if said.broken[column] or not found:
            outcome.tell(ValueError("the language model's numbers for this prompt are not finite"))
        else:
            outcome.tell(found)

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
        column, beam, begins, root, scored = self.seam.upload(
            asking.column, asking.beam, begun, 0 * begun, np.concatenate([np.arange(beams), read])
        )
        of_beams, of_roots = self.seam.logits(hidden[scored]).split([beams, len(read)])
        if len(column):
            growing.answer(column, beam, *growing.best(of_beams, growing.node[column, beam], self._widest))
        if len(begins):
            growing.begin(begins)
            growing.answer(begins, root, *growing.best(of_roots, root, growing.tree.fan))

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
