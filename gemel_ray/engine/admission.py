"""Which mention's rollouts run next, and what is kept in the key-value cache meanwhile.

A prompt that is pushed out between two of its requests is computed again, which costs more than waiting:
so the cache's tokens are given to mentions for as long as their search runs. Those that wait are let in by
their demonstrations, in sorted order and round and round, like a lift: equal and nested lists come together
and find their beginnings in the cache while these are held. Who comes after the lift has passed waits for
its next round, so that nobody waits for ever. No answer depends on the order.

A shared demonstration set is computed once, when the first mention that is shown it comes, and let go when
the last one has its answer: no eviction between, and every prompt goes on exactly where it ends.
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
    """`tokens` of the cache, for one event loop."""

    def __init__(self, tokens: int) -> None:
        self.free = self.all = tokens
        self.shared = 0  # demonstrations that a mention had in common with the one let in before it
        self._round, self._last = 0, Shots()
        self._waiting: list[tuple[int, Shots, int, int, Beginning, asyncio.Future[int]]] = []
        self._arrivals = count()
        self._inside: Counter[Beginning] = Counter()

    @asynccontextmanager
    async def taken(self, tokens: int, shots: Shots, beginning: Beginning = ()) -> AsyncIterator[None]:
        """Room for `tokens` behind `beginning`, which takes its own room once for all that share it; the
        prompt's demonstrations are `shots`."""
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        # Only what stands ahead of the lift can still be met in this round.
        lap = self._round if shots > self._last else self._round + 1
        bisect.insort(self._waiting, (lap, shots, next(self._arrivals), tokens, beginning, turn))
        self._admit()
        try:
            taken = await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was our turn in the very moment we left
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
            if tokens + once > self.free and self._inside:  # alone, even the longest is let in
                return
            self._waiting.pop(0)
            self.free -= tokens + once
            self._inside[beginning] += 1
            self.shared += _common(self._last, shots)
            self._last = shots
            turn.set_result(tokens)


def _common(one: Shots, other: Shots) -> int:
    """Length of what both begin with."""
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))


@dataclass(slots=True)
class _Beginning:
    hold: int
    computed: asyncio.Task[int]
    users: int = 0


class Beginnings:
    """`compute` puts a beginning into the cache under a hold and says how many tokens it has."""

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
        """(hold, tokens) of the beginning `ids`; nothing where it is empty."""
        if not ids:
            yield []
            return
        if ids not in self._kept:
            hold = self._open()
            self._kept[ids] = _Beginning(hold, asyncio.ensure_future(self._compute(ids, hold)))
        beginning = self._kept[ids]
        beginning.users += 1
        try:
            # Others wait for it too: who leaves must not take it with him.
            yield [(beginning.hold, await asyncio.shield(beginning.computed))]
        finally:
            beginning.users -= 1
            if not beginning.users:
                del self._kept[ids]
                beginning.computed.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await beginning.computed
                self._close(beginning.hold)
