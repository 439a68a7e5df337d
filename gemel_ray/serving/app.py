"""The routes, as a FastAPI app over a desk. What runs it, and who links, is not known here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from gemel_ray.config import Online
from gemel_ray.serving import bodies, requests, schemas
from gemel_ray.serving.answers import Answering
from gemel_ray.serving.desk import Desk, Place
from gemel_ray.serving.faults import STATUS, Fault
from gemel_ray.serving.front_page import Page
from gemel_ray.serving.gate import Gate
from gemel_ray.serving.requests import Fetch

_ABOUT = """Names the people, places and things in image-caption pairs.

`POST /v1/link` takes a text, a picture if there is one, and the mentions to be linked (or finds them), and
gives for each mention an entity of the knowledge base, with its probability and the runners-up, or NIL."""
_LINK = """Send JSON (one document, or `documents`), or a form with `text`, `image` (a file), `mentions` and
`options` (JSON), `id`. With `Accept: application/x-ndjson` each document's links come as a line of their own
as soon as they are there, and request_id, timings, fingerprint and knowledge as the last line."""
_FORM = {
    "type": "object",
    "required": ["text"],
    "additionalProperties": False,
    "properties": {
        "text": {"type": "string"},
        "image": {"type": "string", "format": "binary", "description": "the picture's file"},
        "mentions": {"type": "string", "description": "JSON, as in a JSON request"},
        "id": {"type": "string"},
        "options": {"type": "string", "description": "JSON, as in a JSON request"},
    },
}
_ONE_OR_MANY = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("One", "Many")]}
_BODY = {
    "required": True,
    "content": {"application/json": {"schema": _ONE_OR_MANY}, "multipart/form-data": {"schema": _FORM}},
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Error, "description": ", ".join(k for k, s in STATUS.items() if s == status)}
    for status in sorted(set(STATUS.values()))
}


@dataclass(frozen=True)
class Endpoint:
    """What the routes need."""

    desk: Desk
    limits: Online
    fetch: Fetch
    page: Page
    fingerprint: str
    knowledge: str
    key: str = ""


def create(endpoint: Endpoint) -> FastAPI:
    """The app."""
    from importlib.metadata import version

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        endpoint.desk.readiness.suspect()
        yield

    app = FastAPI(
        title="gemel-ray",
        version=version("gemel-ray"),
        description=_ABOUT,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(Gate, meters=endpoint.desk.meters, key=endpoint.key)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _mistyped)
    _links(app, endpoint)
    _states(app, endpoint)
    endpoint.page.add(app)
    described = app.openapi

    def openapi() -> dict[str, Any]:
        schema = described()
        schema["components"]["schemas"].update(schemas.schemas())
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _links(app: FastAPI, endpoint: Endpoint) -> None:
    stream: dict[int | str, dict[str, Any]] = {
        200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}
    }

    @app.post(
        "/v1/link",
        summary="Link the mentions of one document or several",
        description=_LINK,
        response_model=schemas.Answer,
        responses=_ERRORS | stream,
        openapi_extra={"requestBody": _BODY},
        tags=["links"],
    )
    async def link(request: Request) -> Response:
        known = {"fingerprint": endpoint.fingerprint, "knowledge": endpoint.knowledge}
        asking = partial(_tables, endpoint, request)
        state = request.state
        answer = Answering(endpoint.desk, asking, state.request_id, known, state.told)
        streamed = "application/x-ndjson" in request.headers.get("accept", "")
        return await (answer.streamed() if streamed else answer.whole())


async def _tables(endpoint: Endpoint, request: Request, place: Place) -> Any:
    """What is asked, and its documents as tables. Raises Fault."""
    limits = endpoint.limits
    body = await bodies.read(request.headers, request.stream(), int(limits.megabytes * 2**20))
    asked = requests.call(await bodies.parsed(request.headers, body), request.state.request_id, limits)
    place.take(len(asked.documents) - 1)
    return asked, await asyncio.to_thread(requests.rows, asked, limits, endpoint.fetch)


def _states(app: FastAPI, endpoint: Endpoint) -> None:
    desk = endpoint.desk

    @app.get("/healthz", summary="Whether the server answers", tags=["state"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Whether a link went through just now", responses={503: {}}, tags=["state"])
    async def readyz() -> JSONResponse:
        reason = await desk.readiness.reason(busy=desk.inside > 0)
        known = {"fingerprint": endpoint.fingerprint, "knowledge": endpoint.knowledge}
        if reason is not None:
            return JSONResponse({"status": "not ready", "reason": reason} | known, 503, {"Retry-After": "5"})
        return JSONResponse({"status": "ready"} | known)

    @app.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse, tags=["state"])
    async def metrics() -> Response:
        return Response(desk.meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _refused(request: Request, error: Exception) -> Response:
    """What the router itself refuses, in the form of all errors."""
    assert isinstance(error, HTTPException)
    fault = Fault(
        "bad_request", {404: "there is nothing at this address"}.get(error.status_code, error.detail)
    )
    return JSONResponse(fault.body(request.state.request_id), error.status_code, error.headers)


async def _mistyped(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    fault = Fault("bad_request", f"{first['loc'][-1]}: {first['msg'].lower()}")
    return JSONResponse(fault.body(request.state.request_id), fault.status)
