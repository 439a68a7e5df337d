"""Fetches pictures that a request gives as URLs, concurrently in threads. Callers take turns, so that a slow
host delays only those who named it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from gemel_ray.pictures.limits import ImageError
from gemel_ray.serving.desk import Place, Turns
from gemel_ray.serving.requests import Call, Fetch
from gemel_ray.serving.schemas import Fault

_AT_ONCE = 32  # fetches of all requests together
_EACH = 8  # fetches of one caller


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch")


def _turns() -> Turns:
    return Turns(lambda: _AT_ONCE, _EACH)


@dataclass(frozen=True)
class Pictures:
    """Fetches with `fetch`; all pictures of one request have at most `limit` bytes."""

    fetch: Fetch
    limit: int
    threads: ThreadPoolExecutor = field(default_factory=_threads)
    turns: Turns = field(default_factory=_turns)

    async def of(self, call: Call, place: Place) -> Fetch:
        """Fetch all URLs of a request; a lookup that returns the bytes or raises ImageError. Raises Fault."""
        urls = list(dict.fromkeys(d.image for d in call.documents if d.image and "://" in d.image))
        found: dict[str, bytes | ImageError] = {}
        try:
            async with asyncio.TaskGroup() as tasks:
                for url in urls:
                    tasks.create_task(self._fetch_into(found, url, place))
        except ExceptionGroup as several:
            raise several.exceptions[0] from None
        return _lookup(found)

    async def _fetch_into(self, found: dict[str, bytes | ImageError], url: str, place: Place) -> None:
        await self.turns.enter(place.caller, 1)
        work = asyncio.get_running_loop().run_in_executor(self.threads, _outcome, self.fetch, url)
        # A thread cannot be stopped: it keeps its turn until it is done, also when the request has left.
        work.add_done_callback(lambda _: self.turns.leave(place.caller, 1))
        outcome = await asyncio.shield(work)
        if isinstance(outcome, bytes):
            if sum(len(f) for f in found.values() if isinstance(f, bytes)) + len(outcome) > self.limit:
                raise Fault("too_large", f"the request's images have more than {self.limit:,} bytes together")
            place.keep(len(outcome))
        found[url] = outcome


def _outcome(fetch: Fetch, url: str) -> bytes | ImageError:
    try:
        return fetch(url)
    except ImageError as error:
        return error


def _lookup(found: dict[str, bytes | ImageError]) -> Callable[[str], bytes]:
    def fetched(url: str) -> bytes:
        outcome = found[url]
        if isinstance(outcome, ImageError):
            raise outcome
        return outcome

    return fetched
