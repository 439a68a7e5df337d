"""Callers take turns: whoever has had least is next, however much the others still want.

Work is counted in units of its cost, so that a caller with a thousand mentions waits behind its own, and one
with a single mention is next. Knows nothing of what the work is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


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
