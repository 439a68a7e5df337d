"""Pictures from strangers' URLs: the strict way to fetch, for a server that anybody may ask.

Only http and https. A host is resolved once, every address it has must be public, and the connection goes to
the very address that was checked: a name that changes its mind in between (DNS rebinding) leads nowhere.
Redirections are checked like first addresses. Time and size are bounded as a whole. models/http.py is
the trusting way, through a proxy. Knows nothing of pictures.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import SplitResult, urljoin, urlsplit

from gemel_ray.models.http import HEADERS, ascii_url, broken, unanswered
from gemel_ray.models.limits import LIMITS, ImageError, ImageLimits

Address = IPv4Address | IPv6Address
REDIRECTS = 5
_MOVED = (301, 302, 303, 307, 308)
_NAT64 = ip_network("64:ff9b::/96")
# What is not everybody's, by IANA's registries of special addresses, written out: what `is_global` says of an
# address changes from one Python to the next.
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
_OFFERED = {**HEADERS, "Accept": "image/*", "Accept-Encoding": "identity", "Connection": "close"}


def resolved(host: str, port: int) -> list[Address]:
    """All addresses of a host, as the system's resolver knows them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(str(place[4][0]).partition("%")[0]) for place in found]


def is_public(address: Address) -> bool:
    """Whether it can be reached by everybody: no private, loopback, link-local (cloud metadata), shared,
    reserved or multicast address, nor an IPv6 address that stands for such an IPv4 one."""
    if address in _NAT64:
        held = inner(address)
        return held is not None and is_public(held)
    if address in METADATA or (isinstance(address, IPv6Address) and address not in _UNICAST):
        return False
    return address.is_global and not any(address in net for net in _SPECIAL)


def inner(address: Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for."""
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:  # how a network of IPv6 alone reaches every IPv4 address
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]


@dataclass(frozen=True)
class PublicWeb:
    """Who may be asked: `hosts` (patterns as *.example.org; none: every public host), found by `resolve`,
    at addresses that are `allowed`; `refusal` is said of others. `limits.seconds` and `limits.bytes` hold
    for redirections and all."""

    limits: ImageLimits = LIMITS
    hosts: tuple[str, ...] = ()
    resolve: Callable[[str, int], list[Address]] = field(default=resolved)
    allowed: Callable[[Address], bool] = field(default=is_public)
    refusal: str = "its host is not a public one"

    def fetch(self, url: str) -> bytes:
        """The bytes at the URL; one more than the limit says that there are too many. Raises ImageError."""
        deadline = time.monotonic() + self.limits.seconds
        try:
            for _ in range(REDIRECTS + 1):
                outcome = self._asked(url, deadline)
                if isinstance(outcome, bytes):
                    return outcome
                url = urljoin(url, _as_utf8(outcome))
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, ImageError):
                raise
            raise broken(TimeoutError() if time.monotonic() >= deadline else error) from error
        raise ImageError(f"it was redirected more than {REDIRECTS} times")

    def _asked(self, url: str, deadline: float) -> bytes | str:
        """The body, or where a redirection leads."""
        parts = urlsplit(ascii_url(url))
        secure, host, port = self._place(parts)
        address = self._checked(host, port)
        with _connected(address, host, port, secure, deadline) as connection:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers=_OFFERED)
            answer = connection.getresponse()
            if answer.status in _MOVED and (place := answer.getheader("Location")):
                return place
            if answer.status != 200:
                raise unanswered(answer.status, answer.getheader("Retry-After"))
            return self._read(answer, deadline)

    def _place(self, parts: SplitResult) -> tuple[bool, str, int]:
        if parts.scheme not in ("http", "https"):
            raise ImageError("image addresses start with http:// or https://")
        if not parts.hostname or parts.username is not None:
            raise ImageError("its address has no host, or a user in it")
        host = parts.hostname.rstrip(".").lower()
        if self.hosts and not any(fnmatch(host, pattern.lower()) for pattern in self.hosts):
            raise ImageError("images of its host are not fetched here")
        secure = parts.scheme == "https"
        return secure, host, parts.port or (443 if secure else 80)

    def _checked(self, host: str, port: int) -> Address:
        """The address to connect to. One that is not allowed among several refuses the host."""
        try:
            addresses = self.resolve(host, port)
        except UnicodeError as error:
            raise ImageError("its host is not known") from error
        if not addresses or not all(self.allowed(address) for address in addresses):
            raise ImageError(self.refusal)
        return addresses[0]

    def _read(self, answer: HTTPResponse, deadline: float) -> bytes:
        received = bytearray()
        while len(received) <= self.limits.bytes and (part := answer.read1(2**16)):
            received += part
        if time.monotonic() > deadline:  # a connection that was cut looks like one that has ended
            raise TimeoutError
        if answer.length and len(received) <= self.limits.bytes:
            raise ImageError("it is cut short")
        return bytes(received[: self.limits.bytes + 1])


def _as_utf8(header: str) -> str:
    """A header's text: http.client takes each byte for a letter of Latin-1."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


@contextmanager
def _connected(
    address: Address, host: str, port: int, secure: bool, deadline: float
) -> Iterator[HTTPConnection]:
    """A connection to `address` that speaks to `host`, and ends at the deadline whatever the other side
    does: one that sends a byte of its headers a second never makes a read time out."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    raw = socket.create_connection((str(address), port), timeout=left)
    twin = raw.dup()  # TLS takes the socket over
    watch = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, [twin])
    watch.daemon = True
    watch.start()
    connection = HTTPConnection(host, port)
    try:
        connection.sock = _trust().wrap_socket(raw, server_hostname=host) if secure else raw
        yield connection
    finally:
        watch.cancel()
        connection.close()
        raw.close()
        twin.close()


def _cut(raw: socket.socket) -> None:
    try:
        raw.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # closed in the same moment


@cache
def _trust() -> ssl.SSLContext:
    return ssl.create_default_context()
