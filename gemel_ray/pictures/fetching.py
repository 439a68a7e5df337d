"""Pictures by URL for a job of millions: many hosts at once, few requests per host, retries, each URL once.

A host gets a few requests at a time however many threads there are, and a slow one delays only its pictures.
Where a server is busy (429, 502, 503, 504), or the connection breaks, it is tried again after a pause, as
long as its Retry-After says; no thread sits the pause out. Addresses where clouds keep their machines'
credentials are never contacted. Knows nothing of what is in a picture.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from gemel_ray.pictures.limits import Busy, ImageError, ImageLimits
from gemel_ray.pictures.web import Web, is_public, is_public_or_private

_PAUSES = (1.0, 4.0)  # seconds before a busy server is tried again, where it does not say
_REFUSAL = "its host is not a public one (encode.public_hosts=false lets private ones be asked)"
_LONGEST = 60.0  # seconds that a server may make us wait


@dataclass(frozen=True)
class FetchPolicy:
    """`threads` pictures at once in a process, at most `per_host` of them from one host, with `pause` seconds
    before the next one. `public`: no host of a private network or this machine."""

    threads: int = 32
    per_host: int = 4
    pause: float = 0.0
    public: bool = True


@dataclass
class _Host:
    under_way: int = 0
    waiting: deque[str] = field(default_factory=deque)


class Fetcher:
    """Thread-safe. A URL that is being fetched is not requested again: its result is shared."""

    def __init__(self, limits: ImageLimits, policy: FetchPolicy) -> None:
        self._policy = policy
        allowed = is_public if policy.public else is_public_or_private
        self._web = Web(limits, allowed=allowed, refusal=_REFUSAL, proxies=True)
        self._threads = ThreadPoolExecutor(policy.threads, thread_name_prefix="fetch")
        self._clock = asyncio.new_event_loop()
        threading.Thread(target=self._run_clock, name="fetch clock", daemon=True).start()
        self._lock = threading.Lock()
        self._hosts: dict[str, _Host] = {}
        self._pending: dict[str, Future[bytes]] = {}

    def ask(self, url: str) -> Future[bytes]:
        """The picture's bytes, or the ImageError that says why they cannot be had."""
        with self._lock:
            if url in self._pending:
                return self._pending[url]
            answer = self._pending[url] = Future()
            host = self._hosts.setdefault(_host(url), _Host())
            host.waiting.append(url)
        self._start(_host(url))
        return answer

    def _start(self, name: str) -> None:
        """Start as many of the host's waiting pictures as the policy allows."""
        with self._lock:
            host = self._hosts.get(name)
            if host is None:
                return
            if not host.waiting and not host.under_way:
                del self._hosts[name]
                return
            urls = []
            while host.waiting and host.under_way < self._policy.per_host:
                host.under_way += 1
                urls.append(host.waiting.popleft())
        for url in urls:
            self._threads.submit(self._fetch, name, url, _PAUSES)

    def _fetch(self, name: str, url: str, pauses: tuple[float, ...]) -> None:
        """Fetch the URL; from a busy server again after each of the `pauses`. Meanwhile it counts against the
        host's limit."""
        try:
            outcome: bytes | Exception = self._web.fetch(url)
        except Exception as fault:  # whatever it is, it must reach all that wait for the picture
            outcome = fault
        if isinstance(outcome, Busy) and pauses:
            wait = min(pauses[0] if outcome.wait is None else outcome.wait, _LONGEST)
            self._schedule(wait, self._threads.submit, self._fetch, name, url, pauses[1:])
            return
        with self._lock:
            answer = self._pending.pop(url)
        if isinstance(outcome, bytes):
            answer.set_result(outcome)
        else:
            answer.set_exception(outcome)
        self._schedule(self._policy.pause, self._release, name)

    def _release(self, name: str) -> None:
        """Count one request of the host less, and start the next."""
        with self._lock:
            self._hosts[name].under_way -= 1
        self._start(name)

    def _schedule(self, seconds: float, doing: Callable[..., object], *given: object) -> None:
        if not seconds:
            doing(*given)
            return
        self._clock.call_soon_threadsafe(self._clock.call_later, seconds, doing, *given)

    def _run_clock(self) -> None:
        self._clock.run_forever()
        self._clock.close()

    def close(self) -> None:
        """Fetch nothing more."""
        self._clock.call_soon_threadsafe(self._clock.stop)
        self._threads.shutdown(wait=False, cancel_futures=True)


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""


def fetch_result(answer: Future[bytes]) -> bytes:
    """The fetched bytes. Raises ImageError, whatever went wrong."""
    try:
        return answer.result()
    except ImageError:
        raise
    except Exception as fault:
        raise ImageError(f"it cannot be fetched ({type(fault).__name__})") from fault
