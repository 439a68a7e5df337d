"""Pictures that a request gives as URLs, fetched side by side in threads of their own: a slow host keeps
nobody waiting but those who named it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from gemel_ray.models.limits import ImageError
from gemel_ray.serving.faults import Fault
from gemel_ray.serving.requests import Call, Fetch

_AT_ONCE = 32  # of all requests together


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch")


@dataclass(frozen=True)
class Pictures:
    """By `fetch`; those of one request have `limit` bytes at most together."""

    fetch: Fetch
    limit: int
    threads: ThreadPoolExecutor = field(default_factory=_threads)

    async def of(self, asked: Call) -> Fetch:
        """What was found at each of the request's URLs: bytes, or the ImageError. Raises Fault."""
        urls = list(dict.fromkeys(d.image for d in asked.documents if d.image and "://" in d.image))
        loop = asyncio.get_running_loop()
        found = await asyncio.gather(
            *(loop.run_in_executor(self.threads, _tried, self.fetch, url) for url in urls)
        )
        if sum(len(f) for f in found if isinstance(f, bytes)) > self.limit:
            raise Fault("too_large", f"the request's images have more than {self.limit:,} bytes together")
        return _lookup(dict(zip(urls, found, strict=True)))


def _tried(fetch: Fetch, url: str) -> bytes | ImageError:
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
