"""What the page shows besides links: the demonstrations of an answer's prompt, and inputs to try.

A bank is memory-mapped, so that any process may open it. Knows nothing of links.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from gemel_ray.knowledge.bank import Bank
from gemel_ray.serving.schemas import Responses, Span

PAGE = Path(__file__).parent / "page"
_EXAMPLES = PAGE / "examples"
_JPEG: Responses = {200: {"content": {"image/jpeg": {}}}, 404: {}}


class Demonstration(BaseModel):
    """A solved example; `picture`: whether /v1/demonstration/picture has one."""

    id: str
    text: str
    mention: str
    target: str
    picture: bool


class Example(BaseModel):
    """An input to try; `picture` is an address relative to the page, or null."""

    title: str
    text: str
    mentions: list[Span] | None
    picture: str | None


def router(current: Callable[[], Bank]) -> APIRouter:
    """/v1/demonstration, its picture, and /v1/examples."""
    routes = APIRouter(tags=["page"])

    @routes.get("/v1/demonstration", summary="A solved example of the prompts", responses={404: {}})
    def demonstration(id: str) -> Demonstration:
        bank = current()
        row = _row(bank, id)
        named = {"text": bank.text(row), "mention": bank.mention(row), "target": bank.target(row)}
        return Demonstration(id=id, picture=bank.thumbnail(row) is not None, **named)

    @routes.get("/v1/demonstration/picture", summary="Its picture", response_class=Response, responses=_JPEG)
    def picture(id: str) -> Response:
        bank = current()
        jpeg = bank.thumbnail(_row(bank, id))
        if jpeg is None:
            raise HTTPException(404, "this demonstration has no picture")
        return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @routes.get("/v1/examples", summary="Inputs to try")
    def inputs() -> list[Example]:
        return examples()

    return routes


def examples() -> list[Example]:
    """The page's example inputs."""
    entries = json.loads((_EXAMPLES / "examples.json").read_text(encoding="utf-8"))
    return [Example(**e | {"picture": e["picture"] and f"page/examples/{e['picture']}"}) for e in entries]


def _row(bank: Bank, identity: str) -> int:
    row = bank.row(identity)
    if row is None:
        raise HTTPException(404, "there is no demonstration of this id")
    return row
