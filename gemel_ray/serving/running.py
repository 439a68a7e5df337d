"""A segment's stages in this process, fed with one document at a time by many callers at once.

Stages that compute (Encode) take the documents that have gathered while the pass before was under way: no
timer, so a lone document waits for nobody. Stages that wait (Generate) are given each document at once: the
engine does its own batching. Knows nothing of Ray and of HTTP.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from gemel_ray.graph import Segment

_COUNTED = ("asked", "cached", "decoded", "requests")  # of what Generate measures
_LANES = 2  # passes at once, so that one slow picture does not keep everybody waiting


@dataclass
class _Waiting:
    table: pa.Table
    seconds: dict[str, float]
    outcome: asyncio.Future[pa.Table]


class Running:
    """A started segment. `run` may be called from one event loop, as often at once as wanted."""

    def __init__(self, segment: Segment, batch: int) -> None:
        works = segment.works
        waits = [work.waits for _, work in works]
        cut = waits.index(True) if True in waits else len(works)
        self.segment = segment
        self.gathering = Gathering(Segment(segment.graph, works[:cut]), batch) if cut else None
        self.streaming = Segment(segment.graph, works[cut:]) if cut < len(works) else None
        self._told = Counter[str]()

    async def run(self, table: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Rows of one document, and the seconds each stage took."""
        seconds: dict[str, float] = {}
        with self.segment.occupied():  # also while it waits for its pass
            if self.gathering is not None:
                table = await self.gathering.run(table, seconds)
            if self.streaming is not None:
                table = await self.streaming.run(table, seconds)
        return table, seconds

    def counted(self) -> dict[str, int]:
        """By the engine since this was last asked: whoever adds that up counts nothing twice."""
        measured = self.segment.measures().get("generate", {})
        now = Counter({name: measured.get(name, 0) for name in _COUNTED})
        new, self._told = now - self._told, now
        return dict(new)

    async def retire(self) -> None:
        """When the documents under way are done, give back what no renewed segment shares."""
        await self.segment.retire()

    def check(self) -> None:
        """Raise when this process must be replaced."""
        self.segment.check()

    def close(self) -> None:
        self.segment.close()


@dataclass
class Gathering:
    """Passes of up to `batch` documents through a segment whose answers do not depend on their number."""

    segment: Segment
    batch: int
    waiting: deque[_Waiting] = field(default_factory=deque)
    lanes: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, table: pa.Table, seconds: dict[str, float]) -> pa.Table:
        """Cancelled, a document that still waits is left out."""
        one = _Waiting(table, seconds, asyncio.get_running_loop().create_future())
        self.waiting.append(one)
        if len(self.lanes) < _LANES:
            self.lanes.add(asyncio.create_task(self._work_off()))
        return await one.outcome

    async def _work_off(self) -> None:
        """Until nobody waits. The lane is given back in the same breath: a document that came between the two
        would find all lanes taken, and wait for the next one to come."""
        lane = asyncio.current_task()
        assert lane is not None
        try:
            while self.waiting:
                taken: list[_Waiting] = []
                while self.waiting and len(taken) < self.batch:
                    one = self.waiting.popleft()
                    taken += [] if one.outcome.done() else [one]
                if taken:
                    await self._pass(taken)
        finally:
            self.lanes.remove(lane)

    async def _pass(self, taken: list[_Waiting]) -> None:
        seconds: dict[str, float] = {}
        try:
            tables = [_named(one.table, pa.repeat(str(n), len(one.table))) for n, one in enumerate(taken)]
            outcome = await self.segment.run(pa.concat_tables(tables), seconds)
        except Exception as fault:
            if len(taken) > 1:  # it is one document's: the others shall not suffer
                for one in taken:
                    await self._pass([one])
            elif not taken[0].outcome.done():
                taken[0].outcome.set_exception(fault)
            return
        for one, rows in zip(taken, _parted(outcome, len(taken)), strict=True):
            one.seconds.update(seconds)
            if not one.outcome.done():
                name = one.table["document_id"][0]
                one.outcome.set_result(_named(rows, pa.repeat(name, len(rows))))


def _named(table: pa.Table, names: pa.Array) -> pa.Table:
    """Two callers may use the same id, so within a pass a document goes by its number."""
    return table.set_column(table.column_names.index("document_id"), "document_id", names)


def _parted(table: pa.Table, count: int) -> list[pa.Table]:
    """The rows of document 0, 1, ...: stages keep their order, and every document has one at least."""
    number = table["document_id"].to_numpy().astype(np.int64)
    starts = np.searchsorted(number, np.arange(count + 1))
    return [table.slice(a, b - a) for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]
