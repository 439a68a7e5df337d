"""Pictures from untrusted URLs, for the job and for a public server.

Only http and https. All addresses of a host must be allowed (by default: public) when a connection is made,
and redirections are checked like first addresses. Time and size are bounded as a whole.
Connections are kept alive. Knows nothing of pictures.
"""

from __future__ import annotations

import errno
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from fnmatch import fnmatch
from functools import cache, cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore
import idna

from gemel_ray.pictures.limits import LIMITS, Busy, ImageError, ImageLimits, reason

Address = IPv4Address | IPv6Address
REDIRECTS = 5
_MOVED = (301, 302, 303, 307, 308)
_NAT64 = ip_network("64:ff9b::/96")
# Addresses that are not public, by IANA's registries of special addresses. They are listed here because
# `is_global` differs between versions of Python.
_SPECIAL = [
    ip_network(net)
    for net in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
        "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
        "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
    )
]  # fmt: skip
_UNICAST = ip_network("2000::/3")  # all other IPv6 is special
METADATA = {  # where clouds keep a machine's credentials, beside the link-local 169.254.0.0/16
    ip_address(place)
    for place in (
        "fd00:ec2::254",  # AWS
        "fd00:ec2::23",  # AWS, of a pod
        "fd20:ce::254",  # Google Cloud
        "fd00:c1::a9fe:a9fe",  # Oracle
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure: a public address that only its machines reach
    )
}


def resolved(host: str, port: int) -> list[Address]:
    """All addresses of a host, as the system's resolver knows them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(str(place[4][0]).partition("%")[0]) for place in found]


def is_public(address: Address) -> bool:
    """Whether it is reachable from anywhere: not private, loopback, link-local (cloud metadata), shared,
    reserved or multicast, nor an IPv6 address that embeds such an IPv4 one."""
    if address in _NAT64:
        embedded = embedded_ipv4(address)
        return embedded is not None and is_public(embedded)
    if address in METADATA or (isinstance(address, IPv6Address) and address not in _UNICAST):
        return False
    return address.is_global and not any(address in net for net in _SPECIAL)


def embedded_ipv4(address: Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 one embeds."""
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:  # how IPv6-only networks reach IPv4 addresses
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]


def is_public_or_private(address: Address) -> bool:
    """Whether it is a host, also of a private network or this machine; not cloud metadata or multicast."""
    place = embedded_ipv4(address) or address
    return place not in METADATA and not (place.is_link_local or place.is_multicast or place.is_unspecified)


@dataclass(frozen=True)
class Web:
    """A client that contacts `hosts` (patterns as *.example.org; none: every host), found by `resolve`, at
    addresses that are `allowed`; `refusal` is the message for others. `limits.seconds` and `limits.bytes`
    include redirections. `proxies`: use the machine's proxy, if it has one; the proxy then decides."""

    limits: ImageLimits = LIMITS
    hosts: tuple[str, ...] = ()
    resolve: Callable[[str, int], list[Address]] = field(default=resolved)
    allowed: Callable[[Address], bool] = field(default=is_public)
    refusal: str = "its host is not a public one"
    proxies: bool = False

    def fetch(self, url: str) -> bytes:
        """The bytes at the URL; one more than the limit means that there are too many. Raises ImageError."""
        deadline = time.monotonic() + self.limits.seconds
        try:
            with until(deadline):
                return self._followed(url)
        except ImageError:
            raise
        except (OSError, httpcore.RemoteProtocolError, httpcore.LocalProtocolError, ValueError) as error:
            raise connection_error(TimeoutError() if time.monotonic() >= deadline else error) from error

    def _followed(self, url: str) -> bytes:
        for _ in range(REDIRECTS + 1):
            outcome = self._request(urlsplit(ascii_url(url)))
            if isinstance(outcome, bytes):
                return outcome
            url = urljoin(url, outcome)
        raise ImageError(f"it was redirected more than {REDIRECTS} times")

    def _request(self, parts: SplitResult) -> bytes | str:
        """The body, or the target of a redirection."""
        host, port = self._place(parts)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        url = httpcore.URL(scheme=parts.scheme, host=host, port=port, target=path)
        with self._pool(parts).stream("GET", url, headers=HEADERS) as answer:
            headers = {name.lower(): value for name, value in answer.headers}
            if answer.status in _MOVED and (place := headers.get(b"location")):
                return _text(place)
            if answer.status != 200:
                raise status_error(answer.status, _text(headers.get(b"retry-after", b"")))
            return self._read(answer)

    def _place(self, parts: SplitResult) -> tuple[str, int | None]:
        if parts.scheme not in ("http", "https"):
            raise ImageError("image addresses start with http:// or https://")
        if not parts.hostname or parts.username is not None:
            raise ImageError("its address has no host, or a user in it")
        host = parts.hostname.rstrip(".").lower()
        if self.hosts and not any(fnmatch(host, pattern.lower()) for pattern in self.hosts):
            raise ImageError("images of its host are not fetched here")
        return host, parts.port

    def _pool(self, parts: SplitResult) -> httpcore.ConnectionPool:
        proxy = getproxies().get(parts.scheme) if self.proxies else None
        return (
            connections_through(proxy) if proxy and not proxy_bypass(parts.hostname or "") else self._direct
        )

    @cached_property
    def _direct(self) -> httpcore.ConnectionPool:
        return connections(self._checked)

    def _checked(self, host: str, port: int) -> str:
        """The address to connect to. Raises ImageError if any of the host's addresses is not allowed."""
        try:
            addresses = self.resolve(host, port)
        except UnicodeError as error:
            raise ImageError("its host is not known") from error
        if not addresses or not all(self.allowed(address) for address in addresses):
            raise ImageError(self.refusal)
        return str(addresses[0])

    def _read(self, answer: httpcore.Response) -> bytes:
        received = bytearray()
        try:
            for part in answer.iter_stream():
                received += part
                if len(received) > self.limits.bytes:
                    break
        except httpcore.RemoteProtocolError as error:
            raise ImageError("it is cut short") from error
        return bytes(received[: self.limits.bytes + 1])


def _text(header: bytes) -> str:
    """A header's text: UTF-8 if it is valid, else Latin-1."""
    try:
        return header.decode()
    except UnicodeError:
        return header.decode("latin-1")


# HTTP: how a URL is requested, and messages of failures. Knows nothing of pictures and connections.


HEADERS: dict[bytes | str, bytes | str] = {
    "User-Agent": "gemel-ray (image reader)",  # Wikimedia refuses the defaults of libraries
    "Accept": "image/*",
    "Accept-Encoding": "identity",
}
_BUSY = (429, 502, 503, 504)
_CUT_OFF = (errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH)


def ascii_url(address: str) -> str:
    """A URL as it is requested: its host by IDNA, all else percent-encoded, without white space at its ends.
    Raises ImageError for an invalid host name."""
    parts = urlsplit(address.strip())
    if not parts.netloc.isascii():
        user, at, place = parts.netloc.rpartition("@")
        host, colon, port = place.partition(":")
        try:
            named = idna.encode(host, uts46=True).decode()
        except idna.IDNAError as error:
            raise ImageError(f"its host {host!r:.60} is not the name of a host") from error
        parts = parts._replace(netloc=f"{user}{at}{named}{colon}{port}")
    return quote(parts.geturl(), safe="%/:?&=#+~!$,;@()*'[]")


def status_error(status: int, retry_after: str | None) -> ImageError:
    """The error for a status other than 200."""
    why = f"the server answered {status}"
    return Busy(why, _retry_after(retry_after)) if status in _BUSY else ImageError(why)


def connection_error(error: Exception) -> ImageError:
    """The error for a connection that failed or broke. A time-out is not `Busy`: it is not tried again."""
    if isinstance(error, socket.gaierror):
        passing = error.errno == socket.EAI_AGAIN
        return (Busy if passing else ImageError)("its host is not known")
    if isinstance(error, httpcore.RemoteProtocolError):
        return Busy(f"the server's answer is not HTTP, or ends early ({error})")
    passing = isinstance(error, ConnectionError) or (isinstance(error, OSError) and error.errno in _CUT_OFF)
    return (Busy if passing else ImageError)(reason(error))


def _retry_after(text: str | None) -> float | None:
    """Seconds of a Retry-After: a number, or a date by this machine's clock."""
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


# Connections for httpcore's pool that go to checked addresses only and end at a deadline.
#
# A host is resolved when a connection is made, by a function that may refuse it, and the connection goes to
# the very address that was checked: DNS rebinding has no effect. httpcore keeps connections alive and uses
# them again for the same host. Knows nothing of pictures.


Resolve = Callable[[str, int], str]  # the address to connect to; raises for one that is refused
_IDLE = 20.0  # seconds that a connection is kept without a request
_KEPT = 64  # idle connections
_LOCAL = threading.local()  # the deadline of this thread's request


def connections(resolve: Resolve) -> httpcore.ConnectionPool:
    """Connections directly to hosts."""
    return httpcore.ConnectionPool(
        ssl.create_default_context(),
        max_connections=None,
        max_keepalive_connections=_KEPT,
        keepalive_expiry=_IDLE,
        network_backend=_Network(resolve),
    )


@cache
def connections_through(proxy: str) -> httpcore.ConnectionPool:
    """Connections by way of a proxy, which resolves hosts and decides which are allowed."""
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    user = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    return httpcore.HTTPProxy(
        f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}",
        proxy_auth=user,
        ssl_context=ssl.create_default_context(),
        max_connections=None,
        max_keepalive_connections=_KEPT,
        keepalive_expiry=_IDLE,
        network_backend=_Network(lambda host, _: host),
    )


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """End every connection that this thread uses inside at the `deadline` (of time.monotonic), even if the
    server keeps sending a byte a second."""
    _LOCAL.deadline = deadline
    try:
        yield
    finally:
        del _LOCAL.deadline


def _time_left() -> float:
    """Seconds to the deadline. Raises TimeoutError after it."""
    left: float = _LOCAL.deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Network(httpcore.NetworkBackend):
    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        address = self._resolve(host, port)
        made = socket.create_connection((address, port), timeout=_time_left())
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _Stream(made)


class _Stream(httpcore.NetworkStream):
    """A socket whose every wait ends at the deadline of the request."""

    def __init__(self, made: socket.socket) -> None:
        self._socket = made

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._socket.settimeout(_time_left())
        return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._socket.settimeout(_time_left())
        self._socket.sendall(buffer)

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            self._socket.settimeout(_time_left())  # the deadline is for the whole handshake
            return _Stream(ssl_context.wrap_socket(self._socket, server_hostname=server_hostname))
        except Exception:
            self._socket.close()
            raise

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object":
            return self._socket if isinstance(self._socket, ssl.SSLSocket) else None
        if info == "is_readable":  # of an idle connection: the other side has closed it
            return self._socket.fileno() < 0 or bool(select.select([self._socket], [], [], 0)[0])
        return self._socket if info == "socket" else None
