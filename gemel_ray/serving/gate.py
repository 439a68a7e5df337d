"""Around every request: its id, who may ask, its line in the log, and the answer when something fails.

A plain ASGI layer, since those that wrap responses swallow cancellation. X-Request-ID goes back by whoever
serves the app (Ray Serve's proxy does).
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemel_ray.serving.door import Door, route
from gemel_ray.serving.faults import Fault
from gemel_ray.serving.logs import told
from gemel_ray.serving.meters import Meters

_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_QUIET = ("/healthz", "/readyz", "/metrics")
_ROUTES = (
    "/v1/link",
    "/v1/demonstration",
    "/v1/demonstration/picture",
    "/v1/examples",
    "/openapi.json",
    "/docs",
    "/",
)
_SAFE = {  # what a browser may do with an answer: nothing of another site, and in no frame
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_LEFT = 499  # in the log and the metrics: the client did not wait
INTERNAL = "something went wrong here; the log has it under the request's id"


@dataclass
class Gate:
    """Before `app`, whose requests `door` admits. request.state.caller says who asks."""

    app: ASGIApp
    meters: Meters
    door: Door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        request_id = asked if _ID.fullmatch(asked) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"], state["told"] = request_id, {}
        began, status, unread = time.monotonic(), 0, scope["method"] == "POST"

        async def received() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and bool(message.get("more_body"))
            return message

        async def sent(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_SAFE)
            await send(message)

        try:
            state["caller"] = self.door.admit(scope)
            await self.app(scope, received, sent)
        except ClientDisconnect:
            status = _LEFT
        except asyncio.CancelledError:
            status = _LEFT
            raise
        except Exception as fault:
            if status:  # the answer has begun: all that can be done is to end it
                told(logging.ERROR, "failed while answering", fault, request_id=request_id)
                raise
            answer = self._failed(fault, request_id, state)
            if unread:  # else the server would take the rest of the upload, only to drop it
                answer.headers["Connection"] = "close"
            await answer(scope, receive, sent)
        finally:
            self._noted(scope, status, time.monotonic() - began, state)

    def _failed(self, fault: Exception, request_id: str, state: dict[str, Any]) -> JSONResponse:
        if not isinstance(fault, Fault):
            told(logging.ERROR, "a fault of ours", fault, request_id=request_id)
            fault = Fault("internal", INTERNAL)
        self.meters.errors.labels(fault.kind).inc()
        state["told"]["kind"] = fault.kind  # not what was said: it quotes the request
        return JSONResponse(fault.body(request_id), fault.status, fault.headers())

    def _noted(self, scope: Scope, status: int, seconds: float, state: dict[str, Any]) -> None:
        path = route(scope) or "/"
        named = path if path in (*_ROUTES, *_QUIET) else "other"
        self.meters.requests.labels(named, status).inc()
        self.meters.seconds.labels(named).observe(seconds)
        if named in _QUIET and status == 200:
            return
        fields = {"method": scope["method"], "path": scope["path"][:200], "status": status}
        fields |= {"seconds": round(seconds, 4), "request_id": state["request_id"]} | state["told"]
        told(logging.INFO, "request", **fields)
