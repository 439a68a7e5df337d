"""Access control, by the Host and Origin of a request, its path and its key. Raises Fault.

With keys every path except those in OPEN needs one, so a route that is added later is closed until it is
listed. Host and Origin are checked because a page of another site can send a visitor's browser here: by a
name of that site that suddenly leads here (DNS rebinding), or by a form.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from ipaddress import IPv6Network, ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemel_ray.errors import Mistake
from gemel_ray.serving.meters import Meters, log_event
from gemel_ray.serving.schemas import Fault

KEYS = "GEMEL_RAY_API_KEY"
OPEN = ("", "/", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics")  # they reveal no request
_FILES = "/page/"  # files of the two pages


def keys(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The keys, one per caller, separated by commas; none where the variable is not set. Raises ValueError
    for a key that cannot be sent in a header, since it would never match."""
    if KEYS not in environment:
        return ()
    found = tuple(environment[KEYS].split(","))
    for key in found:
        if not key:
            raise Mistake(f"{KEYS} holds an empty key; leave the variable out if everybody may ask")
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise Mistake(
                f"{KEYS} holds a space, a line break or another character that no header can carry; "
                "a file's last line break is one (kubectl create secret --from-file keeps it)"
            )
    return found


def route(scope: Mapping[str, Any]) -> str:
    """The path without the prefix under which the app is mounted, as its router sees it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    inside = root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/")
    return path[len(root) :] if inside else path


@dataclass(frozen=True)
class Door:
    """Admits requests. Without `keys` anyone is admitted. `hosts` are patterns of host names; IP addresses,
    and names without a dot, which nobody can register, are always allowed."""

    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    def admit(self, scope: Mapping[str, Any]) -> str:
        """The caller of a request: the number of its key where there are several, else its address."""
        headers = Headers(raw=scope["headers"])
        self._check_origin(headers.get("host", ""), headers.get("origin"))
        path = route(scope)
        if not self.keys or path in OPEN or path.startswith(_FILES):
            return caller(scope)
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        sent = credentials.strip().encode() if scheme.lower() == "bearer" else b""
        fitting = [n for n, key in enumerate(self.keys) if hmac.compare_digest(sent, key.encode())]
        if not fitting:
            raise Fault("unauthorized", "this endpoint needs its API key: Authorization: Bearer KEY")
        return f"key {fitting[0]}" if len(self.keys) > 1 else caller(scope)

    def _check_origin(self, host: str, origin: str | None) -> None:
        if not self._is_allowed(_name(host)):
            raise Fault("forbidden", f"it is not asked by the name {host!r:.80} (online.hosts)")
        if origin is None:
            return
        place = origin.partition("://")[2]
        if not place or (_plain(place) != _plain(host) and not self._listed(_name(place))):
            raise Fault("forbidden", f"pages of {origin!r:.80} may not ask here (online.hosts)")

    def _is_allowed(self, name: str) -> bool:
        return "." not in name or _is_address(name) or self._listed(name)

    def _listed(self, name: str) -> bool:
        return any(fnmatch(name, pattern.lower()) for pattern in self.hosts)


def caller(scope: Mapping[str, Any]) -> str:
    """The caller's address; for IPv6 its network, since one machine can use any address in it."""
    place = str((scope.get("client") or ("", 0))[0])
    if ":" not in place or not _is_address(place):
        return place
    address = ip_address(place)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or IPv6Network((int(address), 64), strict=False))


def _name(place: str) -> str:
    """The host name of host:port, in lower case."""
    try:
        return (urlsplit(f"//{place}").hostname or "").rstrip(".").lower()
    except ValueError:
        return f".{place}"  # not a host name: no pattern allows it


def _plain(place: str) -> str:
    """Host and port, without the default ports of http and https."""
    return place.lower().removesuffix(":80").removesuffix(":443")


def _is_address(name: str) -> bool:
    try:
        ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


# Around every request: its id, access control, its line in the log, and the answer when something fails.
#
# A plain ASGI layer, since those that wrap responses swallow cancellation. The server returns X-Request-ID
# (Ray Serve's proxy does).


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
_SAFE = {  # limits what a browser does with an answer: nothing from other sites, no frames
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_LEFT = 499  # status in the log and the metrics: the client disconnected
INTERNAL = "something went wrong here; the log has it under the request's id"


@dataclass
class Gate:
    """Middleware before `app`: `door` admits its requests. Sets request.state.caller."""

    app: ASGIApp
    meters: Meters
    door: Door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent_id = Headers(scope=scope).get("x-request-id", "")
        request_id = sent_id if _ID.fullmatch(sent_id) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"], state["log_fields"] = request_id, {}
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
            if status:  # the answer has begun: it can only be ended
                log_event(logging.ERROR, "failed while answering", fault, request_id=request_id)
                raise
            answer = self._failed(fault, request_id, state)
            if unread:  # else the server would take the rest of the upload, only to drop it
                answer.headers["Connection"] = "close"
            await answer(scope, receive, sent)
        finally:
            self._log_request(scope, status, time.monotonic() - began, state)

    def _failed(self, fault: Exception, request_id: str, state: dict[str, Any]) -> JSONResponse:
        if not isinstance(fault, Fault):
            log_event(logging.ERROR, "a fault of ours", fault, request_id=request_id)
            fault = Fault("internal", INTERNAL)
        self.meters.errors.labels(fault.kind).inc()
        state["log_fields"]["kind"] = fault.kind  # not the message: it quotes the request
        return JSONResponse(fault.body(request_id), fault.status, fault.headers())

    def _log_request(self, scope: Scope, status: int, seconds: float, state: dict[str, Any]) -> None:
        path = route(scope) or "/"
        named = path if path in (*_ROUTES, *_QUIET) else "other"
        self.meters.requests.labels(named, status).inc()
        self.meters.seconds.labels(named).observe(seconds)
        if named in _QUIET and status == 200:
            return
        fields = {"method": scope["method"], "path": scope["path"][:200], "status": status}
        fields |= {"seconds": round(seconds, 4), "request_id": state["request_id"]} | state["log_fields"]
        log_event(logging.INFO, "request", **fields)
