"""Which mention's search runs next: room in the key-value cache, and prompts that begin alike side by side.

A prompt that is pushed out between two of its requests is computed again, which costs more than waiting:
so the cache's tokens are given to mentions for as long as their search runs. Those that wait are let in by
their demonstrations, in sorted order and round and round, like a lift: equal and nested lists come together
and find their beginnings in the cache while these are held. Who comes after the lift has passed waits for
its next round, so that nobody waits for ever. No answer depends on the order.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

Shots = tuple[int, ...]


class Room:
    """`tokens` of the cache, for one event loop."""

    def __init__(self, tokens: int) -> None:
        self.free = self.all = tokens
        self.shared = 0  # demonstrations that a mention had in common with the one let in before it
        self._round, self._last = 0, Shots()
        self._waiting: list[tuple[int, Shots, int, int, asyncio.Future[None]]] = []
        self._arrivals = count()

    @asynccontextmanager
    async def taken(self, tokens: int, shots: Shots) -> AsyncIterator[None]:
        """Room for `tokens` of a prompt that begins with the demonstrations `shots`."""
        tokens = min(tokens, self.all)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Only what stands ahead of the lift can still be met in this round.
        lap = self._round if shots > self._last else self._round + 1
        bisect.insort(self._waiting, (lap, shots, next(self._arrivals), tokens, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was our turn in the very moment we left
                self._give(tokens)
            raise
        try:
            yield
        finally:
            self._give(tokens)

    def _give(self, tokens: int) -> None:
        self.free += tokens
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._waiting[0][3] <= self.free:
            self._round, shots, _, tokens, turn = self._waiting.pop(0)
            if turn.done():  # its caller has left
                continue
            self.free -= tokens
            self.shared += _common(self._last, shots)
            self._last = shots
            turn.set_result(None)


def _common(one: Shots, other: Shots) -> int:
    """Length of what both begin with."""
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))
