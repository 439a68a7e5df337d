"""Pictures by URL for a job of millions: many hosts at once, each politely, with patience, each URL once.

A host is asked by a few at a time however many threads there are, and a slow one keeps none waiting but its
own pictures. Where a server says that it is busy (429, 502, 503, 504), or the way to it breaks, it is asked
again after a pause, as long as it says itself; no thread sits the pause out. Addresses where clouds keep
their machines' credentials are never asked. Knows nothing of what is in a picture.
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
from gemel_ray.pictures.web import Web, is_public, is_somebody

_PAUSES = (1.0, 4.0)  # seconds before a busy server is asked again, where it does not say
_REFUSAL = "its host is not a public one (encode.public_hosts=false lets private ones be asked)"
_LONGEST = 60.0  # that a server may have us wait


@dataclass(frozen=True)
class Manners:
    """`threads` pictures at once in a process, `per_host` of them of one host, `pause` seconds between one's
    end and the next of that host in its place; `public`: no host of a private network or this machine."""

    threads: int = 32
    per_host: int = 4
    pause: float = 0.0
    public: bool = True


@dataclass
class _Host:
    under_way: int = 0
    waiting: deque[str] = field(default_factory=deque)


class Fetching:
    """Any thread may ask; what is under way already is waited for, not asked for again."""

    def __init__(self, limits: ImageLimits, manners: Manners) -> None:
        self._manners = manners
        allowed = is_public if manners.public else is_somebody
        self._web = Web(limits, allowed=allowed, refusal=_REFUSAL, proxies=True)
        self._threads = ThreadPoolExecutor(manners.threads, thread_name_prefix="fetch")
        self._clock = asyncio.new_event_loop()
        threading.Thread(target=self._tick, name="fetch clock", daemon=True).start()
        self._lock = threading.Lock()
        self._hosts: dict[str, _Host] = {}
        self._asked: dict[str, Future[bytes]] = {}

    def ask(self, url: str) -> Future[bytes]:
        """The picture's bytes, or the ImageError that says why they cannot be had."""
        with self._lock:
            if url in self._asked:
                return self._asked[url]
            answer = self._asked[url] = Future()
            host = self._hosts.setdefault(_host(url), _Host())
            host.waiting.append(url)
        self._start(_host(url))
        return answer

    def _start(self, name: str) -> None:
        """As many of the host's waiting pictures as may be under way."""
        with self._lock:
            host = self._hosts.get(name)
            if host is None:
                return
            if not host.waiting and not host.under_way:
                del self._hosts[name]
                return
            urls = []
            while host.waiting and host.under_way < self._manners.per_host:
                host.under_way += 1
                urls.append(host.waiting.popleft())
        for url in urls:
            self._threads.submit(self._fetched, name, url, _PAUSES)

    def _fetched(self, name: str, url: str, pauses: tuple[float, ...]) -> None:
        """The URL asked for; of a busy server once more after each of the `pauses`. It keeps its place among
        the host's few meanwhile."""
        try:
            outcome: bytes | Exception = self._web.fetch(url)
        except Exception as fault:  # whatever it is, whoever waits for the picture must learn it
            outcome = fault
        if isinstance(outcome, Busy) and pauses:
            wait = min(pauses[0] if outcome.wait is None else outcome.wait, _LONGEST)
            self._later(wait, self._threads.submit, self._fetched, name, url, pauses[1:])
            return
        with self._lock:
            answer = self._asked.pop(url)
        if isinstance(outcome, bytes):
            answer.set_result(outcome)
        else:
            answer.set_exception(outcome)
        self._later(self._manners.pause, self._left, name)

    def _left(self, name: str) -> None:
        """A place of the host is free."""
        with self._lock:
            self._hosts[name].under_way -= 1
        self._start(name)

    def _later(self, seconds: float, doing: Callable[..., object], *given: object) -> None:
        if not seconds:
            doing(*given)
            return
        self._clock.call_soon_threadsafe(self._clock.call_later, seconds, doing, *given)

    def _tick(self) -> None:
        self._clock.run_forever()
        self._clock.close()

    def close(self) -> None:
        """Ask for nothing more."""
        self._clock.call_soon_threadsafe(self._clock.stop)
        self._threads.shutdown(wait=False, cancel_futures=True)


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""


def fetched(answer: Future[bytes]) -> bytes:
    """What was asked for. Raises ImageError, whatever went wrong."""
    try:
        return answer.result()
    except ImageError:
        raise
    except Exception as fault:
        raise ImageError(f"it cannot be fetched ({type(fault).__name__})") from fault
