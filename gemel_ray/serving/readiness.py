"""Readiness: whether linking works right now, found out by linking a tiny document.

A link needs everything: knowledge loaded, vectors reachable, the engine alive. When linking fails, new
requests are refused until a link has come through again. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa

from gemel_ray.readers.mentions import mention
from gemel_ray.records import DOCUMENT
from gemel_ray.serving.linker import Linker, WorkerLost
from gemel_ray.serving.meters import log_event

PATIENCE = 5.0  # seconds for a tiny link, where no other request is served
SILENT = 10.0  # seconds in which nothing came through although requests wait
_FRESH = 2.0  # seconds for which other requests' links are proof enough
_TEXT = "Adobe opened an office."
_STARTING = "the models are being loaded"


def tiny() -> pa.Table:
    """A document of one mention."""
    row = {"document_id": "ready", "text": _TEXT, "given": [mention({"start": 0, "end": 5}, _TEXT)]}
    return pa.Table.from_pylist([{name: None for name in DOCUMENT.names} | row], DOCUMENT)


@dataclass
class Readiness:
    """Whether linking works. `down`: why it does not; None where it does."""

    link: Linker
    down: str | None = _STARTING
    suspected: bool = True  # a worker died, and nothing came through since
    waiting: int = 0  # documents that workers are at work on
    _since: float = 0.0  # when the first began to wait, or the last came through
    _last: float = 0.0
    _probe: asyncio.Task[None] | None = None
    _watch: asyncio.Task[None] | None = field(default=None)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Count a document that a worker is at work on."""
        if not self.waiting:
            self._since = time.monotonic()
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    def succeeded(self) -> None:
        """Note that a link came through."""
        self.down, self.suspected, self._last = None, False, time.monotonic()
        self._since = self._last

    def suspect(self, reason: str | None = None) -> None:
        """Note that a worker may be lost: probe until a link comes through again."""
        self.suspected = True
        if self._watch is None or self._watch.done():
            log_event(
                logging.WARNING, "links may not be had; asking until one is", reason=reason or self.down
            )
            self._watch = asyncio.create_task(self._until_ready())

    def overdue(self, seconds: float) -> None:
        """Note that a request ran out of time. If nothing else came through meanwhile, a worker may hang."""
        if time.monotonic() - self._last > seconds:
            self.suspect("nothing came through in a request's time")

    async def first(self, seconds: float) -> None:
        """Wait for a first link, at most `seconds`."""
        end = time.monotonic() + seconds
        while await self.reason() is not None and time.monotonic() < end:
            await asyncio.sleep(0.1)

    async def reason(self, busy: bool = False) -> str | None:
        """Why linking does not work, or None. `busy`: other requests are being served. Then their links are
        proof, too, and a late probe proves nothing: a worker that dies is noticed at once (see `suspect`)."""
        silent = self.waiting and time.monotonic() - self._since > SILENT
        if silent:
            self.down = self.down or f"nothing came through for {SILENT:.0f} seconds, although somebody waits"
            self.suspect()
        trusted = busy and not self.suspected
        if trusted and time.monotonic() - self._last < _FRESH:
            return self.down
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._ask())
        if silent:  # known already: no need to wait for the probe
            return self.down
        done, _ = await asyncio.wait({self._probe}, timeout=PATIENCE)
        if not done and not trusted:
            self.down = self.down or f"no link came back within {PATIENCE:.0f} seconds"
            self.suspect()
        return self.down

    async def _ask(self) -> None:
        try:
            rows = (await self.link(tiny())).rows
        except WorkerLost as reason:
            self.down = str(reason)
        except Exception as fault:
            self.down = f"a link failed: {type(fault).__name__}"
        else:
            error = rows["error"][0].as_py()
            if error:
                self.down = f"a link failed: {error}"
            else:
                self.succeeded()

    async def _until_ready(self) -> None:
        while await self.reason() is not None:
            await asyncio.sleep(0.5)
