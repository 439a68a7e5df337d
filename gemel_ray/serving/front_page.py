"""The pages at / and /docs with their files, and what is shown of the knowledge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from gemel_ray.knowledge import versions
from gemel_ray.knowledge.bank import Bank
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.serving import demonstrations
from gemel_ray.serving.demonstrations import PAGE


@dataclass
class CurrentBank:
    """The demonstrations of a workspace, of whichever version is in use when they are asked for."""

    workspace: Workspace

    def __call__(self) -> Bank:
        current = versions.current(self.workspace.folder)
        if current != self.workspace.knowledge:
            self.workspace = self.workspace.at(current)
        return self.workspace.bank


@dataclass(frozen=True)
class Page:
    """Over the demonstrations that `bank` gives."""

    bank: Callable[[], Bank]

    def add(self, app: FastAPI) -> None:
        """Its routes."""
        app.mount("/page", StaticFiles(directory=PAGE), name="page")
        app.get("/", include_in_schema=False)(index)
        app.get("/docs", include_in_schema=False)(described)
        app.include_router(demonstrations.router(self.bank))


async def index() -> FileResponse:
    """The page. Its addresses are relative, so that it works behind a prefix."""
    return FileResponse(PAGE / "index.html")


async def described() -> FileResponse:
    """What /openapi.json says, to be read. Nothing of it is loaded from another place."""
    return FileResponse(PAGE / "api.html")
