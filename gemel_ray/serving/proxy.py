"""Limits headers and bodies in Ray Serve's proxy, before a request reaches the endpoint.

The proxy buffers what the endpoint has not read of a body yet, and its parser, httptools, has no limit for a
header. Serve calls `bounded` in each proxy (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH).
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemel_ray.errors import Mistake
from gemel_ray.serving.schemas import Fault

_LIMIT = "GEMEL_RAY_MEGABYTES"  # in the proxy's environment: the limit for a request's body


def settings(megabytes: float) -> Mapping[str, str]:
    """The environment of a Ray whose proxies are bounded, and are replaced soon when they die; and whose
    replicas are killed when they hang."""
    return {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.bounded",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        _LIMIT: str(megabytes),
    }


def bounded() -> list[Middleware]:
    """The middleware before the proxy's app. Also makes h11 its parser, which limits headers to 64 KiB."""
    from uvicorn import config

    config.HTTP_PROTOCOLS["auto"] = config.HTTP_PROTOCOLS["h11"]
    return [Middleware(Bounded, most=int(float(os.environ.get(_LIMIT, "40")) * 2**20))]


@dataclass
class Bounded:
    """Middleware before `app`: refuses or cuts off a body that has more than `most` bytes."""

    app: ASGIApp
    most: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdigit() and int(declared) > self.most:
            fault = Fault("too_large", f"the request is larger than {self.most:,} bytes")
            answer = JSONResponse(fault.body(""), fault.status, {"Connection": "close"})
            await answer(scope, receive, send)
            return
        came, ended, answered = 0, False, asyncio.Event()

        async def received() -> Message:
            nonlocal came, ended
            if ended:  # a disconnect before the answer would make Serve cancel the request
                await answered.wait()
                return {"type": "http.disconnect"}
            if came > self.most:  # the endpoint has got more than the limit, and refuses it
                ended = True
                return {"type": "http.request", "body": b"", "more_body": False}
            message = await receive()
            came += len(message.get("body", b""))
            return message

        async def sent(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                answered.set()

        await self.app(scope, received, sent)


# The endpoint's address: whether it is free, and when the endpoint answers there.


def is_free(host: str, port: int) -> None:
    """Raise ValueError when the address cannot be listened at: a server would wait for it silently."""
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
