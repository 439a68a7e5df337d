"""Connections for httpcore's pool that go to checked addresses only and end at a deadline.

A host is resolved when a connection is made, by a function that may refuse it, and the connection goes to the
very address that was checked: a name that changes its mind in between (DNS rebinding) leads nowhere. httpcore
keeps connections alive and hands one to another request for the same host. Knows nothing of pictures.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import unquote, urlsplit

import httpcore

Resolve = Callable[[str, int], str]  # the address to connect to; raises for one that is refused
_IDLE = 20.0  # seconds that a connection is kept without a request
_KEPT = 64  # idle connections
_LOCAL = threading.local()  # the deadline of the request that this thread has in work


def pool(resolve: Resolve) -> httpcore.ConnectionPool:
    """Connections straight to hosts."""
    return httpcore.ConnectionPool(
        ssl.create_default_context(),
        max_connections=None,
        max_keepalive_connections=_KEPT,
        keepalive_expiry=_IDLE,
        network_backend=_Network(resolve),
    )


@cache
def through(proxy: str) -> httpcore.ConnectionPool:
    """Connections by way of a proxy, which resolves and decides who may be asked."""
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
    """Every connection that this thread uses meanwhile ends at the `deadline` (of time.monotonic), whatever
    the other side does: one that sends a byte of its headers a second is not in time either."""
    _LOCAL.deadline = deadline
    try:
        yield
    finally:
        del _LOCAL.deadline


def _left() -> float:
    """Seconds to the deadline. Raises TimeoutError behind it."""
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
        made = socket.create_connection((address, port), timeout=_left())
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _Stream(made)


class _Stream(httpcore.NetworkStream):
    """A socket whose every wait ends at the deadline of the request, not at a time-out of its own."""

    def __init__(self, made: socket.socket) -> None:
        self._socket = made

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._socket.settimeout(_left())
        return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._socket.settimeout(_left())
        self._socket.sendall(buffer)

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            self._socket.settimeout(_left())  # a handshake is in time as a whole
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
