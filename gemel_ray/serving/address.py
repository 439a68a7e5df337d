"""Where an endpoint listens: whether it can, and when it answers."""

from __future__ import annotations

import socket
import time
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException

from gemel_ray.errors import Mistake


def is_free(host: str, port: int) -> None:
    """Raises ValueError when nobody can listen there: a server would wait for it without a word."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as fault:
            raise Mistake(f"cannot listen at {host}:{port} ({fault.strerror}); set online.port") from fault


def until_ready(host: str, port: int) -> None:
    """Wait until a link has gone through."""
    while True:
        with suppress(OSError, HTTPException), closing(HTTPConnection(host, port, timeout=10)) as http:
            http.request("GET", "/readyz")
            if http.getresponse().status == 200:
                return
        time.sleep(0.5)
