"""The routes, as a FastAPI app over a desk. Knows neither what runs it nor what links."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from gemel_ray.config import Config
from gemel_ray.knowledge import versions
from gemel_ray.knowledge.bank import Bank
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.pictures.web import Web
from gemel_ray.segments import Online
from gemel_ray.serving import demonstrations, requests, schemas
from gemel_ray.serving.answers import Answering
from gemel_ray.serving.demonstrations import PAGE
from gemel_ray.serving.desk import Desk, Place
from gemel_ray.serving.door import Door, Gate, keys
from gemel_ray.serving.linker import Linker
from gemel_ray.serving.meters import Meters
from gemel_ray.serving.peers import Peers
from gemel_ray.serving.pictures import Pictures
from gemel_ray.serving.schemas import Fault

_ABOUT = """Names the people, places and things in image-caption pairs.

`POST /v1/link` takes a text, a picture if there is one, and the mentions to be linked (or finds them), and
gives for each mention an entity of the knowledge base, with its probability and the runners-up, or NIL."""
_LINK = """Send JSON (one document, or `documents`), or a form with `text`, `image` (a file), `table`,
`mentions` and `options` (JSON), `id`. With `Accept: application/x-ndjson` each document's links come as a
line of their own as soon as they are there, and request_id, timings, fingerprint and knowledge as the last
line."""
_FORM = {
    "type": "object",
    "required": ["text"],
    "additionalProperties": False,
    "properties": {
        "text": {"type": "string"},
        "image": {"type": "string", "format": "binary", "description": "the picture's file"},
        "table": {"type": "string", "description": "JSON, as in a JSON request, or CSV"},
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
_DESCRIPTIONS = {
    400: "what is wrong with the request, in one sentence",
    401: "no API key, or a wrong one",
    403: "asked by a name, or from a page, that is not this endpoint's",
    413: "a body, text, picture or number of mentions or documents beyond what is taken",
    500: "a fault of ours; the log has it under the request's id",
    503: "busy or not ready: Retry-After says when to ask again",
    504: "given up at the deadline",
}
_ERRORS: schemas.Responses = {
    status: {"model": schemas.Error, "description": said} for status, said in _DESCRIPTIONS.items()
}


@dataclass(frozen=True)
class Endpoint:
    """What the routes need."""

    desk: Desk
    limits: Online
    pictures: Pictures
    page: Page
    door: Door = field(default_factory=Door)
    peers: Peers | None = None  # where there are several processes


def create(endpoint: Endpoint) -> FastAPI:
    """The app."""
    from importlib.metadata import version

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        endpoint.desk.readiness.suspect()
        if endpoint.peers is not None:
            await endpoint.peers.start()
        yield

    app = FastAPI(
        title="gemel-ray",
        version=version("gemel-ray"),
        description=_ABOUT,
        docs_url=None,  # FastAPI's pages load their script from another site; ours is `described`
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(Gate, meters=endpoint.desk.meters, door=endpoint.door)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    _links(app, endpoint)
    _states(app, endpoint)
    endpoint.page.add(app)
    app.openapi = partial(_described, app, app.openapi, bool(endpoint.door.keys))  # type: ignore[method-assign]
    return app


def _described(app: FastAPI, generated: Callable[[], schemas.Json], keyed: bool) -> schemas.Json:
    """/openapi.json: what FastAPI derives from the routes, and what it cannot see."""
    if app.openapi_schema:
        return app.openapi_schema
    schema = generated()
    parts = schema["components"]
    parts["schemas"].update(schemas.schemas())
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's form of errors, which is not ours
        parts["schemas"].pop(name, None)
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for route in (r for methods in schema["paths"].values() for r in methods.values()):
        if route["responses"].pop("422", None):
            route["responses"]["400"] = {"description": _DESCRIPTIONS[400], "content": error}
    if keyed:
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]
    return schema


def _links(app: FastAPI, endpoint: Endpoint) -> None:
    stream: schemas.Responses = {200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}}

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
        read_tables = partial(_tables, endpoint, request)
        state = request.state
        answer = Answering(endpoint.desk, read_tables, state.request_id, state.caller, state.log_fields)
        streamed = "application/x-ndjson" in request.headers.get("accept", "")
        return await (answer.streamed() if streamed else answer.whole())


async def _tables(endpoint: Endpoint, request: Request, place: Place) -> Any:
    """The checked request, and its documents as tables. Raises Fault."""
    limits = endpoint.limits
    most = int(limits.megabytes * 2**20)
    body = await requests.read(request.headers, request.stream(), most, place.keep)
    call = requests.as_call(await requests.parsed(request.headers, body), request.state.request_id, limits)
    fetched = await endpoint.pictures.of(call, place)
    tables = await asyncio.to_thread(requests.rows, call, limits, fetched)
    place.take(len(tables))
    return call, tables


def _states(app: FastAPI, endpoint: Endpoint) -> None:
    desk = endpoint.desk

    @app.get("/healthz", summary="Whether the server answers", tags=["state"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Whether a link went through just now", responses={503: {}}, tags=["state"])
    async def readyz() -> JSONResponse:
        closed = "it is being shut down" if desk.closed else None
        reason = closed or await desk.readiness.reason(busy=desk.inside > 0)
        known = desk.known
        if reason is not None:
            return JSONResponse({"status": "not ready", "reason": reason} | known, 503, {"Retry-After": "5"})
        return JSONResponse({"status": "ready"} | known)

    @app.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse, tags=["state"])
    async def metrics() -> Response:
        text = desk.meters.text() if endpoint.peers is None else await endpoint.peers.text()
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _refused(request: Request, error: Exception) -> Response:
    """The answer to what the router refuses, in the form of all errors."""
    assert isinstance(error, HTTPException)
    nothing = "there is nothing at this address; /docs lists what there is"
    fault = Fault("bad_request", nothing if error.status_code == 404 else error.detail)
    return JSONResponse(fault.body(request.state.request_id), error.status_code, error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    fault = Fault("bad_request", f"{first['loc'][-1]}: {first['msg'].lower()}")
    return JSONResponse(fault.body(request.state.request_id), fault.status)


# The pages at / and /docs with their files, and the demonstrations they show.


@dataclass
class CurrentBank:
    """Returns the demonstrations of a workspace's current version."""

    workspace: Workspace

    def __call__(self) -> Bank:
        current = versions.current(self.workspace.folder)
        if current != self.workspace.knowledge:
            self.workspace = self.workspace.at(current)
        return self.workspace.bank


@dataclass(frozen=True)
class Page:
    """The pages, over the demonstrations that `bank` returns."""

    bank: Callable[[], Bank]

    def add(self, app: FastAPI) -> None:
        """Add the routes."""
        app.mount("/page", StaticFiles(directory=PAGE), name="page")
        app.get("/", include_in_schema=False)(index)
        app.get("/docs", include_in_schema=False)(described)
        app.include_router(demonstrations.router(self.bank))


async def index() -> FileResponse:
    """The page. Its addresses are relative, so that it works under a prefix."""
    return FileResponse(PAGE / "index.html")


async def described() -> FileResponse:
    """The page that shows /openapi.json. It loads nothing from another site."""
    return FileResponse(PAGE / "api.html")


# The app of a configuration, a workspace and a linker.


def endpoint(config: Config, workspace: Workspace, linker: Linker) -> Endpoint:
    """What the routes need. Keys are read from the environment, so that no file and no log contains them.
    Raises ValueError for a key that no client could send."""
    online = config.online
    web = Web(config.encode.limits, online.image_hosts)
    known = {"fingerprint": config.fingerprint(workspace.version), "knowledge": workspace.knowledge}
    return Endpoint(
        desk=Desk(linker, online, Meters(), known),
        limits=online,
        pictures=Pictures(web.fetch, int(online.megabytes * 2**20)),
        page=Page(CurrentBank(workspace)),
        door=Door(keys(os.environ), online.hosts),
    )


def app(config: Config, workspace: Workspace, linker: Linker) -> FastAPI:
    """The app."""
    return create(endpoint(config, workspace, linker))
