"""Whether links can be had right now: found out by asking for one.

A link needs all there is: knowledge loaded, vectors reachable, the engine alive. When none can be had, new
requests are refused until one has come through again. Knows nothing of HTTP.
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
from gemel_ray.serving.linker import Gone, Linker
from gemel_ray.serving.meters import told

PATIENCE = 5.0  # seconds for a tiny link, where nobody else is served
SILENT = 10.0  # seconds in which nothing came through although somebody waits
_FRESH = 2.0  # seconds for which other people's links are proof enough
_TEXT = "Adobe opened an office."
_STARTING = "the models are being loaded"


def tiny() -> pa.Table:
    """A document of one mention."""
    row = {"document_id": "ready", "text": _TEXT, "given": [mention({"start": 0, "end": 5}, _TEXT)]}
    return pa.Table.from_pylist([{name: None for name in DOCUMENT.names} | row], DOCUMENT)


@dataclass
class Readiness:
    """`down` says why there are no links to be had; None: there are."""

    link: Linker
    down: str | None = _STARTING
    doubted: bool = True  # somebody at work died, and nothing came through since
    waiting: int = 0  # documents that somebody is at work on
    _since: float = 0.0  # somebody waits, or something came through
    _last: float = 0.0
    _probe: asyncio.Task[None] | None = None
    _watch: asyncio.Task[None] | None = field(default=None)

    @contextmanager
    def waited(self) -> Iterator[None]:
        """While a document is worked on."""
        if not self.waiting:
            self._since = time.monotonic()
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    def succeeded(self) -> None:
        """A link came through."""
        self.down, self.doubted, self._last = None, False, time.monotonic()
        self._since = self._last

    def suspect(self, reason: str | None = None) -> None:
        """Somebody at work is gone: ask until there is an answer again."""
        self.doubted = True
        if self._watch is None or self._watch.done():
            told(logging.WARNING, "links may not be had; asking until one is", reason=reason or self.down)
            self._watch = asyncio.create_task(self._until_ready())

    def overdue(self, seconds: float) -> None:
        """A request ran out of its time. If nothing else came through in that time, somebody may hang."""
        if time.monotonic() - self._last > seconds:
            self.suspect("nothing came through in a request's time")

    async def first(self, seconds: float) -> None:
        """Wait for a first link, for so long at most."""
        end = time.monotonic() + seconds
        while await self.reason() is not None and time.monotonic() < end:
            await asyncio.sleep(0.1)

    async def reason(self, busy: bool = False) -> str | None:
        """Why not, or None. `busy`: others are being served. Then their links are proof, too, and a late
        answer is none: whoever dies with work on his desk is told of at once (see `suspect`)."""
        silent = self.waiting and time.monotonic() - self._since > SILENT
        if silent:
            self.down = self.down or f"nothing came through for {SILENT:.0f} seconds, although somebody waits"
            self.suspect()
        trusted = busy and not self.doubted
        if trusted and time.monotonic() - self._last < _FRESH:
            return self.down
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._ask())
        if silent:  # known already: nobody is kept for what a probe says
            return self.down
        done, _ = await asyncio.wait({self._probe}, timeout=PATIENCE)
        if not done and not trusted:
            self.down = self.down or f"no link came back within {PATIENCE:.0f} seconds"
            self.suspect()
        return self.down

    async def _ask(self) -> None:
        try:
            rows = (await self.link(tiny())).rows
        except Gone as reason:
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
