"""A replica's segment, following the knowledge: a version made meanwhile is taken over while it serves.

A line of replicas must answer a document by one version. The first of them takes its newest and says which;
those behind it answer by that one, and open it if they must. Models and engine are shared by all versions; an
old version is given back when its documents are done. Knows nothing of Ray and of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine

import pyarrow as pa

from gemel_ray.config import Config
from gemel_ray.graph import Segment
from gemel_ray.knowledge import versions
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.serving.linker import Reply
from gemel_ray.serving.logs import told
from gemel_ray.serving.running import Running

_EVERY = 1.0  # seconds between two looks at which version is current


class Following:
    """`segment` was started on `workspace`."""

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
        """On the newest knowledge."""
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
            except Exception as fault:  # else nobody would look any more
                told(logging.ERROR, "a version of the knowledge cannot be taken over", reason=repr(fault))
            else:
                self._newest = current
                told(logging.INFO, "the knowledge has changed", knowledge=current)

    async def _take(self, version: str) -> None:
        async with self._taking:
            if version in self._running:
                return
            former = self.segment
            segment = await asyncio.to_thread(self._renewed, former, version)
            self._running[version] = Running(segment, self._batch)
            # The one before stays: a document may have begun by it in the replica in front.
            for old in [v for v in self._running if v not in (version, self._newest)]:
                self._keep(self._running.pop(old).retire())

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.add(asyncio.ensure_future(work))

    def _renewed(self, segment: Segment, version: str) -> Segment:
        opened = self._workspace.at(version)
        return segment.renewed(opened, self._config.fingerprint(opened.version))
