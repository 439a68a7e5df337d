"""The front desk: admission, turns, deadlines and retries.

A request is admitted once its documents are ready for work: read, checked, pictures fetched. At most `queue`
documents are inside, with at most `wait` seconds of work before a new one. Beyond that a request is refused
at once, with the time after which to try again. Work is counted in mentions, and callers take turns, so that
one who sends thousands does not delay others. A request that runs out of time, or whose client leaves, is
cancelled down to the engine. A document whose worker died is sent again, since links have no side effects.
Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from time import monotonic

import pyarrow as pa

from gemel_ray.segments import Online
from gemel_ray.serving.linker import Linker, Reply, WorkerLost
from gemel_ray.serving.meters import Meters, mentions
from gemel_ray.serving.readiness import Readiness
from gemel_ray.serving.schemas import Fault

_PAUSE = 0.5  # seconds before a document is sent again
_FEWEST = 4  # mentions under way at once, even on a slow machine
_BODIES = 8  # requests of the greatest size that fit in memory at once
_LATEST = 30  # seconds: the longest Retry-After


@dataclass
class Place:
    """What a request of `caller` occupies: documents, and bytes of what it sent and what was fetched."""

    desk: Desk
    caller: str
    documents: int = 0
    bytes: int = 0

    def check(self, documents: int) -> None:
        """Raise Fault when there is no room for more documents, or too much work before them. A request's own
        documents do not count as before it: when idle, all that `queue` allows is taken. When other callers'
        documents fill the queue, a caller who has none inside still gets the last quarter."""
        desk = self.desk
        ahead = desk.turns.ahead(self.caller)
        wait = desk.pace.wait(ahead)
        later = min(_LATEST, max(1, math.ceil(wait)))
        spare = 0 if desk.documents[self.caller] else max(1, desk.queue // 4)
        others = desk.inside - desk.documents[self.caller]
        if desk.inside + documents > desk.queue + (spare if others else 0):
            full = f"{desk.inside} documents are inside, of {desk.queue} at most (online.queue)"
            raise Fault("busy", full, later)
        if wait > desk.wait:
            long = f"{ahead} mentions are ahead, about {wait:.0f} seconds of work: too long (online.wait)"
            raise Fault("busy", long, later)

    def take(self, documents: int) -> None:
        """Admit documents that are ready for work. Raises Fault."""
        self.check(documents)
        desk = self.desk
        self.documents += documents
        desk.documents[self.caller] += documents
        desk.meters.inside.set(desk.inside)

    def keep(self, size: int) -> None:
        """Count `size` more bytes in memory. Raises Fault when all requests together have too many, or one
        caller has more than half of that."""
        desk = self.desk
        if desk.bytes.total() + size > desk.memory or desk.bytes[self.caller] + size > desk.memory // 2:
            raise Fault("busy", "there is no memory for more uploads at once", 1)
        self.bytes += size
        desk.bytes[self.caller] += size

    def leave(self) -> None:
        """Release everything."""
        for counts, number in ((self.desk.documents, self.documents), (self.desk.bytes, self.bytes)):
            counts[self.caller] -= number
            if not counts[self.caller]:
                del counts[self.caller]
        self.desk.meters.inside.set(self.desk.inside)


class Desk:
    """The desk before a `linker`, with the limits of `online`: `queue`, `wait`, `deadline`."""

    def __init__(
        self, linker: Linker, online: Online, meters: Meters, known: dict[str, str] | None = None
    ) -> None:
        self.known = known or {}  # knowledge and fingerprint of the last answer
        self.linker, self.meters, self.online = linker, meters, online
        self.wait, self.deadline = online.wait, online.deadline
        self.memory = int(_BODIES * online.megabytes * 2**20)
        self.readiness = Readiness(self._link_probe)
        self.documents, self.bytes, self.closed = Counter[str](), Counter[str](), False  # by caller
        self.clocks = set[asyncio.Timeout]()  # deadlines of requests that have lost no worker yet
        self.pace = Pace(long=online.wait / 2)
        self.turns = Turns(self._room)
        self.least = min((s.ongoing for s in online.segments), default=1)
        self.most = min((s.ongoing * s.max_replicas for s in online.segments), default=1)
        self.share(1)

    def share(self, processes: int) -> None:
        """Set the number of API processes that share the queue and the workers."""
        self.processes = max(1, processes)
        self.queue = max(self.online.documents, self.online.queue // self.processes)
        self.meters.queue.set(self.queue)

    @property
    def inside(self) -> int:
        """Documents inside, including those that wait for their turn."""
        return self.documents.total()

    def _room(self) -> float:
        """Mentions that this process gives the workers at once: enough to keep them busy, at most half of
        `wait`, so that a newcomer's turn comes soon. The rate is that of this process."""
        if not self.pace.rate:
            return self.least / self.processes
        return min(self.most / self.processes, max(_FEWEST, self.pace.rate * self.wait / 2))

    def close(self) -> None:
        """Admit no more requests; those inside are finished."""
        self.closed = True

    @contextmanager
    def entered(self, caller: str) -> Iterator[Place]:
        """A place that occupies nothing yet, before anything of the request is read. Raises Fault."""
        if self.closed:
            raise Fault("not_ready", "not ready: it is being shut down", 5)
        if self.readiness.down is not None:
            raise Fault("not_ready", f"not ready: {self.readiness.down}", 5)
        place = Place(self, caller)
        place.check(1)  # else it would be read only to be refused
        try:
            yield place
        finally:
            place.leave()

    @asynccontextmanager
    async def in_time(self, began: float) -> AsyncIterator[None]:
        """Enforce the deadline of a request that began at `began` (time.monotonic). Raises Fault."""
        left = began + self.deadline - time.monotonic()
        try:
            async with asyncio.timeout(left) as clock:
                self.clocks.add(clock)
                yield
        except TimeoutError as late:
            if clock.expired():
                self.readiness.overdue(self.deadline)
                message = f"it took longer than {self.deadline:g} seconds and was given up"
                raise Fault("timeout", message) from late
            raise
        finally:
            self.clocks.discard(clock)

    async def link(self, document: pa.Table, caller: str) -> Reply:
        """Link one document, when it is the caller's turn."""
        began, cost, found = time.monotonic(), mentions(document), None
        await self.turns.enter(caller, cost)
        try:
            reply = await self._link_with_retries(document)
            found = len(reply.rows)
        finally:
            self.turns.leave(caller, cost, found)
        self.readiness.succeeded()
        self.pace.done(time.monotonic() - began, self.turns.inside + found, found)
        self.meters.pace.set(self.pace.rate)
        self.meters.replied(reply)
        self.known |= reply.known
        return reply

    async def _link_probe(self, document: pa.Table) -> Reply:
        """Link a document for readiness; keeps `known` fresh where there are no other requests."""
        reply = await self.linker(document)
        self.known |= reply.known
        return reply

    async def _link_with_retries(self, document: pa.Table) -> Reply:
        while True:
            try:
                with self.readiness.at_work():
                    return await self.linker(document)
            except WorkerLost as gone:
                self._extend_deadlines()
                self.meters.asked_again.inc()
                self.readiness.suspect(str(gone))
                await asyncio.sleep(_PAUSE)

    def _extend_deadlines(self) -> None:
        """After a worker is lost: give each request inside the time of a whole request again, once."""
        for clock in (clock for clock in self.clocks if not clock.expired()):
            clock.reschedule(asyncio.get_running_loop().time() + self.deadline)
        self.clocks.clear()

    async def as_done(
        self, documents: Sequence[pa.Table], caller: str
    ) -> AsyncGenerator[tuple[int, Reply], None]:
        """Number and reply of each document as soon as it is done. If closed early, it cancels the others."""
        tasks = {asyncio.create_task(self.link(table, caller)): n for n, table in enumerate(documents)}
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


# How long a new request will wait, estimated from the mentions a second that were done lately.
#
# The rate depends on the machine, the models and the documents, so it is measured while mentions wait for
# each other. Until that has happened once, it is not known. Later a quiet time, which says little of what
# could have been done, can raise the estimate but never lower it.


_SPAN = 5.0  # seconds over which mentions are counted
_CROWD = 4  # mentions inside; fewer do not show the rate of many at once
_UP, _DOWN = 0.3, 0.1  # weight of one document's span; a standstill is soon forgotten


@dataclass
class Pace:
    """A document that takes `long` seconds while others are inside has waited for them."""

    long: float
    now: Callable[[], float] = monotonic
    rate: float = 0.0  # mentions a second; 0: not known yet
    _done: deque[tuple[float, int]] = field(default_factory=deque)

    def done(self, seconds: float, inside: int, mentions: int = 1) -> None:
        """Count a document that took `seconds` and has `mentions`, of the mentions `inside`."""
        now = self.now()
        self._done.append((now, mentions))
        while self._done[0][0] <= now - _SPAN:
            self._done.popleft()
        measured = sum(number for _, number in self._done) / _SPAN
        if seconds >= self.long and inside >= _CROWD:
            weight = (_UP if measured > self.rate else _DOWN) if self.rate else 1.0
            self.rate += weight * (measured - self.rate)
        elif self.rate:
            self.rate = max(self.rate, measured)

    def wait(self, ahead: int) -> float:
        """Seconds until `ahead` mentions are done; 0 while the rate is not known."""
        return ahead / self.rate if self.rate else 0.0


# Callers take turns: the one that has been served least is next, however much the others still want.
#
# Work is counted by cost, so that a caller with a thousand mentions waits for itself, and one with a single
# mention is next. Knows nothing of what the work is.


@dataclass
class _Caller:
    served: float = 0.0  # cost of what was begun; a newcomer starts where the others are
    under_way: int = 0
    waiting: deque[tuple[int, asyncio.Future[None]]] = field(default_factory=deque)

    @property
    def wanted(self) -> int:
        """Cost of the work that waits."""
        return sum(cost for cost, turn in self.waiting if not turn.done())


class Turns:
    """Fair turns. Work begins while the work under way costs less than `room`, and one caller's less than
    `each`."""

    def __init__(self, room: Callable[[], float], each: float = float("inf")) -> None:
        self._room, self._limit_each = room, each
        self._callers: dict[str, _Caller] = {}
        self.under_way = 0

    async def enter(self, name: str, cost: int) -> None:
        """Wait until it is `name`'s turn; then `leave` must follow."""
        caller = self._callers.get(name)
        if caller is None:
            caller = _Caller(served=min((c.served for c in self._callers.values()), default=0.0))
            self._callers[name] = caller
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        caller.waiting.append((cost, turn))
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the turn came at the moment of leaving
                self.leave(name, cost)
            else:
                self._forget(name)
            raise

    def leave(self, name: str, cost: int, found: int | None = None) -> None:
        """End work that was begun at `cost`; `found`: the cost that it came to, which counts instead."""
        caller = self._callers[name]
        caller.under_way -= cost
        self.under_way -= cost
        caller.served += (cost if found is None else found) - cost
        self._forget(name)
        self._next()

    def ahead(self, name: str) -> int:
        """Cost of what comes before new work of `name`: all that is under way, what waits of `name`, and as
        much of every other caller."""
        waiting = self._callers[name].wanted if name in self._callers else 0
        others = sum(min(waiting, c.wanted) for n, c in self._callers.items() if n != name)
        return self.under_way + waiting + others

    @property
    def inside(self) -> int:
        """Cost of all work that is under way or waits."""
        return self.under_way + sum(c.wanted for c in self._callers.values())

    def _next(self) -> None:
        while self.under_way < max(1.0, self._room()):
            ready = [c for c in self._callers.values() if self._first(c) and c.under_way < self._limit_each]
            if not ready:
                return
            caller = min(ready, key=lambda c: (c.served, c.under_way))
            cost, turn = caller.waiting.popleft()
            caller.served += cost
            caller.under_way += cost
            self.under_way += cost
            turn.set_result(None)

    @staticmethod
    def _first(caller: _Caller) -> bool:
        """Drop cancelled turns; whether one still waits."""
        while caller.waiting and caller.waiting[0][1].done():
            caller.waiting.popleft()
        return bool(caller.waiting)

    def _forget(self, name: str) -> None:
        caller = self._callers.get(name)
        if caller is not None and not caller.under_way and not self._first(caller):
            del self._callers[name]
