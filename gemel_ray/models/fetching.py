"""Pictures by URL for a job of millions: many hosts at once, each politely, with patience, each URL once.

A host is asked by a few at a time however many threads there are, and a slow one keeps none waiting but its
own pictures. Where a server says that it is busy (429, 502, 503, 504), or a connection breaks, it is asked
again after a pause, as long as it says itself. Addresses where clouds keep their machines' credentials are
never asked. Knows nothing of what is in a picture.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from gemel_ray.models.images import ImageError, ImageLimits, read_http
from gemel_ray.models.web import METADATA, Address, Busy, PublicWeb, inner, is_public

_PAUSES = (1.0, 4.0)  # seconds before a busy server is asked again, where it does not say
_LONGEST = 60.0  # that a server may have us wait


@dataclass(frozen=True)
class Manners:
    """`threads` pictures at once in a process, `per_host` of them of one host, `pause` seconds between one's
    end and the next of that host in its place; `public`: no host of a private network or this machine."""

    threads: int = 32
    per_host: int = 4
    pause: float = 0.0
    public: bool = False


@dataclass
class _Host:
    under_way: int = 0
    waiting: deque[str] = field(default_factory=deque)


class Fetching:
    """Any thread may ask; what is under way already is waited for, not asked for again."""

    def __init__(self, limits: ImageLimits, manners: Manners) -> None:
        self._manners = manners
        web = PublicWeb(limits, allowed=is_public if manners.public else is_somebody)
        self._fetch: Callable[[str], bytes] = lambda url: (
            read_http(url, limits) if _has_proxy(url) else web.fetch(url)
        )
        self._threads = ThreadPoolExecutor(manners.threads, thread_name_prefix="fetch")
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
            self._threads.submit(self._done, name, url)

    def _done(self, name: str, url: str) -> None:
        try:
            outcome: bytes | Exception = self._patiently(url)
        except Exception as fault:  # whatever it is, whoever waits for the picture must learn it
            outcome = fault
        with self._lock:
            answer = self._asked.pop(url)
        if isinstance(outcome, bytes):
            answer.set_result(outcome)
        else:
            answer.set_exception(outcome)
        if self._manners.pause:
            time.sleep(self._manners.pause)
        with self._lock:
            self._hosts[name].under_way -= 1
        self._start(name)

    def _patiently(self, url: str) -> bytes:
        for pause in _PAUSES:
            try:
                return self._fetch(url)
            except Busy as busy:
                time.sleep(min(busy.wait if busy.wait is not None else pause, _LONGEST))
        return self._fetch(url)

    def close(self) -> None:
        """Ask for nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def is_somebody(address: Address) -> bool:
    """Any host, of a private network or this machine too, but no cloud's metadata, and no group."""
    place = inner(address) or address
    return place not in METADATA and not (place.is_link_local or place.is_multicast or place.is_unspecified)


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""


def _has_proxy(url: str) -> bool:
    """Whether a proxy asks for us: it, then, decides who may be asked."""
    try:
        parts = urlsplit(url)
        return parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")
    except ValueError:
        return False


def fetched(answer: Future[bytes]) -> bytes:
    """What was asked for. Raises ImageError, whatever went wrong."""
    try:
        return answer.result()
    except ImageError:
        raise
    except Exception as fault:
        raise ImageError(f"it cannot be fetched ({type(fault).__name__})") from fault
