"""Pictures from strangers' URLs, for the job and for a server that anybody may ask.

Only http and https. All addresses of a host must be allowed (by default: public) when a connection is made,
and redirections are checked like first addresses (connections.py). Time and size are bounded as a whole.
Connections are kept alive. Knows nothing of pictures.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import SplitResult, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore

from gemel_ray.models.connections import pool, through, until
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


def is_somebody(address: Address) -> bool:
    """Any host, of a private network or this machine too, but no cloud's metadata, and no group."""
    place = inner(address) or address
    return place not in METADATA and not (place.is_link_local or place.is_multicast or place.is_unspecified)


@dataclass(frozen=True)
class Web:
    """Who may be asked: `hosts` (patterns as *.example.org; none: every host), found by `resolve`, at
    addresses that are `allowed`; `refusal` is said of others. `limits.seconds` and `limits.bytes` hold for
    redirections and all. `proxies`: where the machine has a proxy, it is asked instead, and it decides."""

    limits: ImageLimits = LIMITS
    hosts: tuple[str, ...] = ()
    resolve: Callable[[str, int], list[Address]] = field(default=resolved)
    allowed: Callable[[Address], bool] = field(default=is_public)
    refusal: str = "its host is not a public one"
    proxies: bool = False

    def fetch(self, url: str) -> bytes:
        """The bytes at the URL; one more than the limit says that there are too many. Raises ImageError."""
        deadline = time.monotonic() + self.limits.seconds
        try:
            with until(deadline):
                return self._followed(url)
        except ImageError:
            raise
        except (OSError, httpcore.RemoteProtocolError, httpcore.LocalProtocolError, ValueError) as error:
            raise broken(TimeoutError() if time.monotonic() >= deadline else error) from error

    def _followed(self, url: str) -> bytes:
        for _ in range(REDIRECTS + 1):
            outcome = self._asked(urlsplit(ascii_url(url)))
            if isinstance(outcome, bytes):
                return outcome
            url = urljoin(url, outcome)
        raise ImageError(f"it was redirected more than {REDIRECTS} times")

    def _asked(self, parts: SplitResult) -> bytes | str:
        """The body, or where a redirection leads."""
        host, port = self._place(parts)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        url = httpcore.URL(scheme=parts.scheme, host=host, port=port, target=path)
        with self._pool(parts).stream("GET", url, headers=HEADERS) as answer:
            said = {name.lower(): value for name, value in answer.headers}
            if answer.status in _MOVED and (place := said.get(b"location")):
                return _text(place)
            if answer.status != 200:
                raise unanswered(answer.status, _text(said.get(b"retry-after", b"")))
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
        return through(proxy) if proxy and not proxy_bypass(parts.hostname or "") else self._direct

    @cached_property
    def _direct(self) -> httpcore.ConnectionPool:
        return pool(self._checked)

    def _checked(self, host: str, port: int) -> str:
        """The address to connect to. One that is not allowed among several refuses the host."""
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
    """A header's text: UTF-8 where it is, else Latin-1."""
    try:
        return header.decode()
    except UnicodeError:
        return header.decode("latin-1")
