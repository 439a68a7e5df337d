"""Admission: which mention's rollouts run next, and what stays in the key-value cache meanwhile.

A prompt that is evicted between two of its requests is computed again, which costs more than waiting. So the
cache's tokens are reserved for mentions while their search runs. Waiting mentions are admitted in the order
of their demonstrations, again and again from the beginning (as in an elevator algorithm): mentions with equal
and nested lists are admitted together, and find their beginnings in the cache. A mention that comes later
than its turn waits for the next round, so none waits for ever. Answers do not depend on the order.

A shared demonstration set is computed once, for the first mention that needs it, and released after the last
one: it is not evicted in between, and every prompt continues exactly at its end.
"""

from __future__ import annotations

import asyncio
import bisect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count

Shots = tuple[int, ...]  # rows of the bank
Beginning = tuple[int, ...]  # of a prompt, as Assemble writes it
Ids = tuple[int, ...]


class Room:
    """Reserves `tokens` of the cache, for one event loop."""

    def __init__(self, tokens: int) -> None:
        self.free = self.all = tokens
        self.shared = 0  # demonstrations that a mention had in common with the one admitted before it
        self._round, self._last = 0, Shots()
        self._waiting: list[tuple[int, Shots, int, int, Beginning, asyncio.Future[int]]] = []
        self._arrivals = count()
        self._inside: Counter[Beginning] = Counter()

    @asynccontextmanager
    async def taken(self, tokens: int, shots: Shots, beginning: Beginning = ()) -> AsyncIterator[None]:
        """Reserve `tokens` after `beginning`, which is reserved once for all prompts that share it; `shots`:
        the prompt's demonstrations."""
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        # A mention whose place in the order has passed waits for the next round.
        lap = self._round if shots > self._last else self._round + 1
        bisect.insort(self._waiting, (lap, shots, next(self._arrivals), tokens, beginning, turn))
        self._admit()
        try:
            taken = await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # admitted at the moment of the cancellation
                self._leave(turn.result(), beginning)
            raise
        try:
            yield
        finally:
            self._leave(taken, beginning)

    def _leave(self, taken: int, beginning: Beginning) -> None:
        self.free += taken
        self._inside[beginning] -= 1
        if not self._inside[beginning]:
            del self._inside[beginning]
            self.free += len(beginning)
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            self._round, shots, _, tokens, beginning, turn = self._waiting[0]
            once = 0 if beginning in self._inside else len(beginning)
            if turn.done():  # its caller has left
                self._waiting.pop(0)
                continue
            if tokens + once > self.free and self._inside:  # alone, even the longest is admitted
                return
            self._waiting.pop(0)
            self.free -= tokens + once
            self._inside[beginning] += 1
            self.shared += _common(self._last, shots)
            self._last = shots
            turn.set_result(tokens)


def _common(one: Shots, other: Shots) -> int:
    """The length of the common beginning."""
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))


@dataclass(slots=True)
class _Beginning:
    hold: int
    computed: asyncio.Task[int]
    users: int = 0


class Beginnings:
    """Keeps shared beginnings in the cache. `compute` puts one there under a hold, and returns its tokens."""

    def __init__(
        self,
        compute: Callable[[Ids, int], Awaitable[int]],
        open_: Callable[[], int],
        close: Callable[[int], None],
    ) -> None:
        self._compute, self._open, self._close = compute, open_, close
        self._kept: dict[Ids, _Beginning] = {}

    @asynccontextmanager
    async def kept(self, ids: Ids) -> AsyncIterator[list[tuple[int, int]]]:
        """The (hold, tokens) of the beginning `ids`; an empty list if it is empty."""
        if not ids:
            yield []
            return
        if ids not in self._kept:
            hold = self._open()
            self._kept[ids] = _Beginning(hold, asyncio.ensure_future(self._compute(ids, hold)))
        beginning = self._kept[ids]
        beginning.users += 1
        try:
            # Others wait for it, too: a cancelled caller must not cancel it.
            yield [(beginning.hold, await asyncio.shield(beginning.computed))]
        finally:
            beginning.users -= 1
            if not beginning.users:
                del self._kept[ids]
                beginning.computed.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await beginning.computed
                self._close(beginning.hold)
