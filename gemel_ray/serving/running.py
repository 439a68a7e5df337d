"""A segment's stages in this process, fed with one document at a time by many callers at once.

Stages that compute (Encode) take the documents that have gathered during the last pass: there is no timer,
so a lone document does not wait. Stages that wait (Generate) get each document at once: the engine batches.
Knows nothing of Ray and of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Coroutine
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from gemel_ray.config import Config
from gemel_ray.knowledge import versions
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.serving.linker import Reply
from gemel_ray.serving.meters import log_event
from gemel_ray.stage import Segment

_COUNTED = ("asked", "cached", "decoded", "requests")  # measures of Generate
_LANES = 2  # passes at once, so that one slow picture does not delay all documents


@dataclass
class _Waiting:
    table: pa.Table
    seconds: dict[str, float]
    outcome: asyncio.Future[pa.Table]


class Running:
    """A started segment. `run` may be called any number of times at once, from one event loop."""

    def __init__(self, segment: Segment, batch: int) -> None:
        waits, number = [step.work.waits for step in segment.steps], len(segment.steps)
        cut = waits.index(True) if True in waits else number
        self.segment = segment
        self.batching = Batching(segment.part(0, cut), batch) if cut else None
        self.streaming = segment.part(cut, number) if cut < number else None
        self._reported = Counter[str]()
        self._under_way, self._idle = 0, asyncio.Event()

    async def run(self, table: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Rows of one document, and the seconds each stage took."""
        seconds: dict[str, float] = {}
        self._under_way += 1  # also while it waits for its pass
        try:
            if self.batching is not None:
                table = await self.batching.run(table, seconds)
            if self.streaming is not None:
                table = await self.streaming.run(table, seconds)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
        return table, seconds

    def counted(self) -> dict[str, int]:
        """The engine's counts since the last call, so that they can be added up."""
        measured = self.segment.measures().get("generate", {})
        now = Counter({name: measured.get(name, 0) for name in _COUNTED})
        new, self._reported = now - self._reported, now
        return dict(new)

    async def retire(self) -> None:
        """Once the documents under way are done, free what no renewed segment shares."""
        while self._under_way:
            self._idle.clear()
            await self._idle.wait()
        self.segment.retire()

    def check(self) -> None:
        """Raise when this process must be replaced."""
        self.segment.check()

    def close(self) -> None:
        self.segment.close()


@dataclass
class Batching:
    """Passes of up to `batch` documents through a segment whose answers do not depend on their number."""

    segment: Segment
    batch: int
    waiting: deque[_Waiting] = field(default_factory=deque)
    lanes: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, table: pa.Table, seconds: dict[str, float]) -> pa.Table:
        """Put one document through a pass. If cancelled while it waits, it is left out."""
        one = _Waiting(table, seconds, asyncio.get_running_loop().create_future())
        self.waiting.append(one)
        if len(self.lanes) < _LANES:
            self.lanes.add(asyncio.create_task(self._run_lane()))
        return await one.outcome

    async def _run_lane(self) -> None:
        """Run passes until no document waits. The lane ends without an await in between: a document that came
        then would find all lanes taken, and wait for the next one to come."""
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
            tables = [_with_ids(one.table, pa.repeat(str(n), len(one.table))) for n, one in enumerate(taken)]
            outcome = await self.segment.run(pa.concat_tables(tables), seconds)
        except Exception as fault:
            if len(taken) > 1:  # one document's fault must not fail the others
                for one in taken:
                    await self._pass([one])
            elif not taken[0].outcome.done():
                taken[0].outcome.set_exception(fault)
            return
        for one, rows in zip(taken, _split(outcome, len(taken)), strict=True):
            one.seconds.update(seconds)
            if not one.outcome.done():
                name = one.table["document_id"][0]
                one.outcome.set_result(_with_ids(rows, pa.repeat(name, len(rows))))


def _with_ids(table: pa.Table, names: pa.Array) -> pa.Table:
    """The table with other document ids. Two callers may use the same id, so a pass uses numbers."""
    return table.set_column(table.column_names.index("document_id"), "document_id", names)


def _split(table: pa.Table, count: int) -> list[pa.Table]:
    """The rows of document 0, 1, ...: stages keep the order, and every document has at least one row."""
    number = table["document_id"].to_numpy().astype(np.int64)
    starts = np.searchsorted(number, np.arange(count + 1))
    return [table.slice(a, b - a) for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]


# A replica's segment that follows the knowledge: it adopts a new version while it serves.
#
# All replicas that work on a document must use one version. The first uses its newest and names it; the later
# ones use the same, and open it if they must. Models and engine are shared by all versions; an old version is
# freed when its documents are done. Knows nothing of Ray and of HTTP.


_EVERY = 1.0  # seconds between two checks of which version is current


class VersionedSegment:
    """A segment at the current version of the knowledge; `segment` was started on `workspace`."""

    def __init__(self, segment: Segment, batch: int, workspace: Workspace, config: Config) -> None:
        self._workspace, self._config, self._batch = workspace, config, batch
        self._running = {workspace.knowledge: Running(segment, batch)}
        self._newest = self._looked = workspace.knowledge
        self._taking, self._tasks = asyncio.Lock(), set[asyncio.Task[None]]()

    async def link(self, table: pa.Table, knowledge: str | None) -> Reply:
        """A document's rows by the version `knowledge`, or the newest."""
        if not self._tasks:
            self._keep(self._follow())
        version = knowledge or self._newest
        if version not in self._running:
            await self._take(version)
        running = self._running[version]
        rows, seconds = await running.run(table)
        return Reply(rows, seconds, running.counted(), version)

    @property
    def segment(self) -> Segment:
        """The segment on the newest knowledge."""
        return self._running[self._newest].segment

    def check(self) -> None:
        """Raise when this process must be replaced."""
        self._running[self._newest].check()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._running[self._newest].close()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            try:
                current = await asyncio.to_thread(versions.current, self._workspace.folder)
                if current == self._looked:
                    continue
                self._looked = current  # one that cannot be taken is not tried again every second
                await self._take(current)
            except Exception as fault:  # else the checks would end
                log_event(
                    logging.ERROR, "a version of the knowledge cannot be taken over", reason=repr(fault)
                )
            else:
                self._newest = current
                log_event(logging.INFO, "the knowledge has changed", knowledge=current)

    async def _take(self, version: str) -> None:
        async with self._taking:
            if version in self._running:
                return
            former = self.segment
            segment = await asyncio.to_thread(self._renewed, former, version)
            self._running[version] = Running(segment, self._batch)
            # The last version stays: a document may have begun with it in the previous replica.
            for old in [v for v in self._running if v not in (version, self._newest)]:
                self._keep(self._running.pop(old).retire())

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.add(asyncio.ensure_future(work))

    def _renewed(self, segment: Segment, version: str) -> Segment:
        opened = self._workspace.at(version)
        return segment.renewed(opened, self._config.fingerprint(opened.version))
