"""The front desk: who is let in, how long it may take, and who is asked again.

At most `queue` documents are inside; beyond, a request is refused at once. A request that runs out of time,
or whose client leaves, is cancelled down to the engine. A document whose worker died is asked for again,
since links have no side effects. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import pyarrow as pa

from gemel_ray.serving.faults import Fault
from gemel_ray.serving.linker import Gone, Linker, Reply
from gemel_ray.serving.meters import Meters
from gemel_ray.serving.readiness import Readiness

_PAUSE = 0.5  # seconds before a document is asked for again


@dataclass
class Place:
    """What a request holds inside; grows when it turns out to have several documents."""

    desk: Desk
    documents: int = 0

    def take(self, documents: int) -> None:
        """Raises Fault when there is no room for so many more."""
        if self.desk.inside + documents > self.desk.queue:
            wait = self.desk.usual
            raise Fault("busy", f"{self.desk.inside} documents are waiting already", min(30, math.ceil(wait)))
        self.documents += documents
        self.desk.inside += documents
        self.desk.meters.inside.set(self.desk.inside)


class Desk:
    """Over a `linker`; `queue` documents inside, `deadline` seconds a request."""

    def __init__(
        self, linker: Linker, queue: int, deadline: float, meters: Meters, known: dict[str, str] | None = None
    ) -> None:
        self.known = known or {}  # knowledge and fingerprint of the last answer
        self.linker, self.queue, self.deadline, self.meters = linker, queue, deadline, meters
        self.readiness = Readiness(linker)
        self.inside, self.closed = 0, False
        self.usual = 1.0  # seconds of a document, as they have lately been
        meters.queue.set(queue)

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
        self.usual += 0.1 * (time.monotonic() - began - self.usual)
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
