"""The page at /, what it shows of the knowledge, and its example inputs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from gemel_ray.knowledge.bank import Bank

FOLDER = Path(__file__).parent / "page"


@dataclass(frozen=True)
class Page:
    """Files in `folder` (index.html, examples/examples.json and pictures), and the demonstrations."""

    bank: Bank
    folder: Path = FOLDER

    def add(self, app: FastAPI) -> None:
        """Its routes."""
        if (self.folder / "index.html").is_file():
            app.mount("/page", StaticFiles(directory=self.folder), name="page")
        app.get("/", include_in_schema=False)(self.index)
        app.get("/v1/examples", summary="Inputs to try", tags=["page"])(self.examples)
        app.get("/v1/demonstration", summary="A solved example of the prompts", tags=["page"])(
            self.demonstration
        )
        app.get(
            "/v1/demonstration/picture",
            summary="Its picture",
            response_class=Response,
            responses={200: {"content": {"image/jpeg": {}}}, 404: {}},
            tags=["page"],
        )(self.picture)

    async def index(self) -> Response:
        """The page; where it is not installed, the API's description."""
        index = self.folder / "index.html"
        return FileResponse(index) if index.is_file() else RedirectResponse("/docs")

    async def examples(self) -> list[dict[str, Any]]:
        """[{title, text, mentions, picture}]"""
        file = self.folder / "examples" / "examples.json"
        found: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
        return found

    async def demonstration(self, id: str) -> JSONResponse:
        """Text, mention and answer of the example that a row's `demonstrations` name."""
        row = self._row(id)
        shown = {name: self.bank.table[name][row].as_py() for name in ("id", "text", "mention", "target")}
        return JSONResponse(shown | {"picture": self._picture(row) is not None})

    async def picture(self, id: str) -> Response:
        """JPEG, where the workspace keeps the pictures themselves."""
        picture = self._picture(self._row(id))
        if picture is None:
            raise HTTPException(404)
        return Response(picture, media_type="image/jpeg")

    def _row(self, identity: str) -> int:
        row: int = pc.index(self.bank.table["id"], identity).as_py()
        if row < 0:
            raise HTTPException(404)
        return row

    def _picture(self, row: int) -> bytes | None:
        return None  # workspaces keep features of pictures, not pictures
