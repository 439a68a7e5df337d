"""Beginnings that many prompts share, held in the key-value cache while any of them is searched.

A shared demonstration set is computed once, when the first mention that is shown it comes, and let go when
the last one has its answer: no eviction between, and every prompt goes on exactly where it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

Ids = tuple[int, ...]


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
