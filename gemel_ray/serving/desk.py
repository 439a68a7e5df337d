"""The front desk: who is let in, whose turn it is, how long it may take, and who is asked again.

A request takes its place when its documents are there to be worked on: read, checked, pictures fetched. At
most `queue` documents are inside, and nobody is let in behind more than `wait` seconds of work: beyond, a
request is refused at once, and told when to come again. Work is counted in mentions, and callers take turns,
so that one who asks for thousands keeps nobody waiting but itself. A request that runs out of time, or whose
client leaves, is cancelled down to the engine. A document whose worker died is asked for again, since links
have no side effects. Knows nothing of HTTP.
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
from gemel_ray.serving.linker import Gone, Linker, Reply
from gemel_ray.serving.meters import Meters, mentions
from gemel_ray.serving.readiness import Readiness
from gemel_ray.serving.schemas import Fault

_PAUSE = 0.5  # seconds before a document is asked for again
_FEWEST = 4  # mentions under way at once, on however slow a machine
_BODIES = 8  # requests of the greatest size, whose bytes are in memory at once
_LATEST = 30  # seconds after which whoever was refused is asked to try again at the latest


@dataclass
class Place:
    """What a request of `caller` holds inside: documents, and bytes of what it sent and what was fetched."""

    desk: Desk
    caller: str
    documents: int = 0
    bytes: int = 0

    def check(self, documents: int) -> None:
        """Raises Fault when there is no room for so many, or too much to do before them. A request's own
        documents are not before it: an idle house takes all that `queue` allows. Of a house that is full of
        others' documents, a caller who has none inside finds the last quarter free."""
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
        """Room for so many, which can be worked on. Raises Fault."""
        self.check(documents)
        desk = self.desk
        self.documents += documents
        desk.documents[self.caller] += documents
        desk.meters.inside.set(desk.inside)

    def keep(self, size: int) -> None:
        """So many bytes more are in memory. Raises Fault when all requests have too many together, or one
        caller's half of that."""
        desk = self.desk
        if desk.bytes.total() + size > desk.memory or desk.bytes[self.caller] + size > desk.memory // 2:
            raise Fault("busy", "there is no memory for more uploads at once", 1)
        self.bytes += size
        desk.bytes[self.caller] += size

    def leave(self) -> None:
        """Give all of it back."""
        for counts, mine in ((self.desk.documents, self.documents), (self.desk.bytes, self.bytes)):
            counts[self.caller] -= mine
            if not counts[self.caller]:
                del counts[self.caller]
        self.desk.meters.inside.set(self.desk.inside)


class Desk:
    """Over a `linker`, with the limits of `online`: `queue`, `wait`, `deadline`."""

    def __init__(
        self, linker: Linker, online: Online, meters: Meters, known: dict[str, str] | None = None
    ) -> None:
        self.known = known or {}  # knowledge and fingerprint of the last answer
        self.linker, self.meters, self.online = linker, meters, online
        self.wait, self.deadline = online.wait, online.deadline
        self.memory = int(_BODIES * online.megabytes * 2**20)
        self.readiness = Readiness(self._probed)
        self.documents, self.bytes, self.closed = Counter[str](), Counter[str](), False  # of each caller
        self.clocks = set[asyncio.Timeout]()  # of requests inside that have lost no worker yet
        self.pace = Pace(long=online.wait / 2)
        self.turns = Turns(self._room)
        self.least = min((s.ongoing for s in online.segments), default=1)
        self.most = min((s.ongoing * s.max_replicas for s in online.segments), default=1)
        self.share(1)

    def share(self, processes: int) -> None:
        """So many API processes share what is let in, and the workers."""
        self.processes = max(1, processes)
        self.queue = max(self.online.documents, self.online.queue // self.processes)
        self.meters.queue.set(self.queue)

    @property
    def inside(self) -> int:
        """Documents, those that wait for their turn included."""
        return self.documents.total()

    def _room(self) -> float:
        """Mentions that the workers have at once from here: what keeps them busy, and no more than half of
        `wait`, so that a newcomer's turn comes soon. The rate is of what went through here."""
        if not self.pace.rate:
            return self.least / self.processes
        return min(self.most / self.processes, max(_FEWEST, self.pace.rate * self.wait / 2))

    def close(self) -> None:
        """Let nobody in any more; those inside are finished."""
        self.closed = True

    @contextmanager
    def entered(self, caller: str) -> Iterator[Place]:
        """A place that holds nothing yet, before anything of the request is read. Raises Fault."""
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
        """The deadline of a request that `began` then (time.monotonic). Raises Fault."""
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
        """One document's rows, when it is the caller's turn, from whoever lives to give them."""
        began, cost, found = time.monotonic(), mentions(document), None
        await self.turns.enter(caller, cost)
        try:
            reply = await self._asked(document)
            found = len(reply.rows)
        finally:
            self.turns.leave(caller, cost, found)
        self.readiness.succeeded()
        self.pace.done(time.monotonic() - began, self.turns.inside + found, found)
        self.meters.pace.set(self.pace.rate)
        self.meters.replied(reply)
        self.known |= reply.known
        return reply

    async def _probed(self, document: pa.Table) -> Reply:
        """For readiness; what it was made by is news where nobody else asks."""
        reply = await self.linker(document)
        self.known |= reply.known
        return reply

    async def _asked(self, document: pa.Table) -> Reply:
        while True:
            try:
                with self.readiness.waited():
                    return await self.linker(document)
            except Gone as gone:
                self._once_more()
                self.meters.asked_again.inc()
                self.readiness.suspect(str(gone))
                await asyncio.sleep(_PAUSE)

    def _once_more(self) -> None:
        """Somebody at work is gone: whoever is inside now has the time of a whole request again, once."""
        for clock in (clock for clock in self.clocks if not clock.expired()):
            clock.reschedule(asyncio.get_running_loop().time() + self.deadline)
        self.clocks.clear()

    async def as_done(
        self, documents: Sequence[pa.Table], caller: str
    ) -> AsyncGenerator[tuple[int, Reply], None]:
        """Number and reply of each document as soon as it is done. Left early, the others are cancelled."""
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


# How long those who come now will have to wait, by how many mentions were lately done a second.
#
# How many can be done depends on the machine, the models and the documents, so it is measured while mentions
# wait for each other. Before that has happened once nothing is known. Later a quiet time, which says little
# of what could have been done, can raise the estimate but never lower it.


_SPAN = 5.0  # seconds over which mentions are counted
_CROWD = 4  # mentions inside; fewer do not show what many at once would come to
_UP, _DOWN = 0.3, 0.1  # weight of one document's span; a standstill is soon forgotten


@dataclass
class Pace:
    """A document that takes `long` seconds while others are inside has waited for them."""

    long: float
    now: Callable[[], float] = monotonic
    rate: float = 0.0  # mentions a second; 0: not known yet
    _done: deque[tuple[float, int]] = field(default_factory=deque)

    def done(self, seconds: float, inside: int, mentions: int = 1) -> None:
        """One of the documents with the mentions `inside` is done, which took so long."""
        now = self.now()
        self._done.append((now, mentions))
        while self._done[0][0] <= now - _SPAN:
            self._done.popleft()
        seen = sum(number for _, number in self._done) / _SPAN
        if seconds >= self.long and inside >= _CROWD:
            weight = (_UP if seen > self.rate else _DOWN) if self.rate else 1.0
            self.rate += weight * (seen - self.rate)
        elif self.rate:
            self.rate = max(self.rate, seen)

    def wait(self, ahead: int) -> float:
        """Seconds until so many mentions are done; 0 while nothing is known."""
        return ahead / self.rate if self.rate else 0.0


# Callers take turns: whoever has had least is next, however much the others still want.
#
# Work is counted in units of its cost, so that a caller with a thousand mentions waits behind its own, and
# one with a single mention is next. Knows nothing of what the work is.


@dataclass
class _Caller:
    had: float = 0.0  # cost of what was begun; a newcomer starts where the others stand
    under_way: int = 0
    waiting: deque[tuple[int, asyncio.Future[None]]] = field(default_factory=deque)

    @property
    def wanted(self) -> int:
        """Cost of what waits."""
        return sum(cost for cost, turn in self.waiting if not turn.done())


class Turns:
    """Work begins while what is under way costs less than `room`, of one caller less than `each`."""

    def __init__(self, room: Callable[[], float], each: float = float("inf")) -> None:
        self._room, self._each = room, each
        self._callers: dict[str, _Caller] = {}
        self.under_way = 0

    async def enter(self, name: str, cost: int) -> None:
        """Wait until it is `name`'s turn; then `leave` must follow."""
        caller = self._callers.get(name)
        if caller is None:
            caller = _Caller(had=min((c.had for c in self._callers.values()), default=0.0))
            self._callers[name] = caller
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        caller.waiting.append((cost, turn))
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was our turn in the very moment we left
                self.leave(name, cost)
            else:
                self._forget(name)
            raise

    def leave(self, name: str, cost: int, found: int | None = None) -> None:
        """What was begun at `cost` is done; if it came to `found`, the caller has had that."""
        caller = self._callers[name]
        caller.under_way -= cost
        self.under_way -= cost
        caller.had += (cost if found is None else found) - cost
        self._forget(name)
        self._next()

    def ahead(self, name: str) -> int:
        """Cost of what is done before something that `name` would add: all that is under way, its own that
        waits, and as much of every other caller's."""
        mine = self._callers[name].wanted if name in self._callers else 0
        others = sum(min(mine, c.wanted) for n, c in self._callers.items() if n != name)
        return self.under_way + mine + others

    @property
    def inside(self) -> int:
        """Cost of all that is under way or waits."""
        return self.under_way + sum(c.wanted for c in self._callers.values())

    def _next(self) -> None:
        while self.under_way < max(1.0, self._room()):
            ready = [c for c in self._callers.values() if self._first(c) and c.under_way < self._each]
            if not ready:
                return
            caller = min(ready, key=lambda c: (c.had, c.under_way))
            cost, turn = caller.waiting.popleft()
            caller.had += cost
            caller.under_way += cost
            self.under_way += cost
            turn.set_result(None)

    @staticmethod
    def _first(caller: _Caller) -> bool:
        """Whether somebody of it waits still."""
        while caller.waiting and caller.waiting[0][1].done():
            caller.waiting.popleft()
        return bool(caller.waiting)

    def _forget(self, name: str) -> None:
        caller = self._callers.get(name)
        if caller is not None and not caller.under_way and not self._first(caller):
            del self._callers[name]
