"""The front desk: who is let in, how long it may take, and who is asked again.

At most `queue` documents are inside, and nobody is let in behind more than `wait` seconds of work: beyond, a
request is refused at once, and told when to come again. A request that runs out of time, or whose client
leaves, is cancelled down to the engine. A document whose worker died is asked for again, since links have no
side effects. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import pyarrow as pa

from gemel_ray.config import Online
from gemel_ray.serving.faults import Fault
from gemel_ray.serving.linker import Gone, Linker, Reply
from gemel_ray.serving.meters import Meters
from gemel_ray.serving.pace import Pace
from gemel_ray.serving.readiness import Readiness

_PAUSE = 0.5  # seconds before a document is asked for again
_LATEST = 30  # seconds after which whoever was refused is asked to try again at the latest


@dataclass
class Place:
    """What a request holds inside; grows when it turns out to have several documents."""

    desk: Desk
    documents: int = 0

    def take(self, documents: int) -> None:
        """Raises Fault when there is no room for so many more, or too much to do before them. A request's
        own documents are not before it: an idle house takes all that `queue` allows."""
        desk, ahead = self.desk, self.desk.inside - self.documents
        wait = desk.pace.wait(ahead)
        later = min(_LATEST, max(1, math.ceil(wait)))
        if desk.inside + documents > desk.queue:
            full = f"{desk.inside} documents are inside, of {desk.queue} at most (online.queue)"
            raise Fault("busy", full, later)
        if wait > desk.wait:
            long = f"{ahead} documents are ahead, about {wait:.0f} seconds of work: too long (online.wait)"
            raise Fault("busy", long, later)
        self.documents += documents
        self.desk.inside += documents
        self.desk.meters.inside.set(self.desk.inside)


class Desk:
    """Over a `linker`, with the limits of `online`: `queue`, `wait`, `deadline`."""

    def __init__(
        self, linker: Linker, online: Online, meters: Meters, known: dict[str, str] | None = None
    ) -> None:
        self.known = known or {}  # knowledge and fingerprint of the last answer
        self.linker, self.meters = linker, meters
        self.queue, self.wait, self.deadline = online.queue, online.wait, online.deadline
        self.readiness = Readiness(linker)
        self.inside, self.closed = 0, False
        self.pace = Pace(long=online.wait / 2)
        meters.queue.set(self.queue)

    def close(self) -> None:
        """Let nobody in any more; those inside are finished."""
        self.closed = True

    @contextmanager
    def entered(self) -> Iterator[Place]:
        """Room for one document, before anything of it is read. Raises Fault."""
        if self.closed:
            raise Fault("not_ready", "not ready: it is being shut down", 5)
        if self.readiness.down is not None:
            raise Fault("not_ready", f"not ready: {self.readiness.down}", 5)
        place = Place(self)
        place.take(1)
        try:
            yield place
        finally:
            self.inside -= place.documents
            self.meters.inside.set(self.inside)

    @asynccontextmanager
    async def in_time(self, began: float) -> AsyncIterator[None]:
        """The deadline of a request that `began` then (time.monotonic). Raises Fault."""
        left = began + self.deadline - time.monotonic()
        try:
            async with asyncio.timeout(left) as clock:
                yield
        except TimeoutError as late:
            if clock.expired():
                self.readiness.overdue(self.deadline)
                message = f"it took longer than {self.deadline:g} seconds and was given up"
                raise Fault("timeout", message) from late
            raise

    async def link(self, document: pa.Table) -> Reply:
        """One document's rows, from whoever lives to give them."""
        began = time.monotonic()
        while True:
            try:
                reply = await self.linker(document)
                break
            except Gone as gone:
                self.meters.asked_again.inc()
                self.readiness.suspect(str(gone))
                await asyncio.sleep(_PAUSE)
        self.readiness.succeeded()
        self.pace.done(time.monotonic() - began, self.inside)
        self.meters.pace.set(self.pace.rate)
        self.meters.replied(reply)
        self.known |= reply.known
        return reply

    async def as_done(self, documents: Sequence[pa.Table]) -> AsyncGenerator[tuple[int, Reply], None]:
        """Number and reply of each document as soon as it is done. Left early, the others are cancelled."""
        tasks = {asyncio.create_task(self.link(table)): n for n, table in enumerate(documents)}
        waiting = set(tasks)
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=tasks.__getitem__):
                    yield tasks[task], task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
