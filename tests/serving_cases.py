"""An endpoint without models, for tests of what stands before them: its linker is given by the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa

from gemel_ray.knowledge import bank
from gemel_ray.pictures.limits import ImageError
from gemel_ray.records import LINK
from gemel_ray.segments import Online
from gemel_ray.serving.app import Endpoint, Page, create
from gemel_ray.serving.desk import Desk
from gemel_ray.serving.door import Door
from gemel_ray.serving.linker import Linker, Reply
from gemel_ray.serving.meters import Meters
from gemel_ray.serving.pictures import Pictures

EXAMPLE = {"id": "one/0-5", "text": "Adobe is here.", "mention": "Adobe", "target": "Adobe"}


def small_bank(folder: Path) -> bank.Bank:
    rows = [EXAMPLE | {"tokens": [1, 2], "image_row": -1}]
    none = np.zeros((0, 2), np.float32)
    return bank.write(
        [pa.Table.from_pylist(rows, bank.SCHEMA)], [], none, np.zeros((1, 2), np.float32), folder
    )


def nowhere(url: str) -> bytes:
    raise ImageError("nothing is fetched here")


def endpoint(folder: Path, linker: Linker, limits: Online, key: str = "", **more: Any) -> Endpoint:
    known = {"fingerprint": "print", "knowledge": "known"}
    desk = Desk(linker, limits, Meters(), known)
    desk.readiness.succeeded()
    examples = small_bank(folder / "bank")
    page = Page(lambda: examples)
    pictures = Pictures(more.get("fetch", nowhere), int(limits.megabytes * 2**20))
    return Endpoint(desk, limits, pictures, page, Door(tuple(filter(None, [key])), limits.hosts))


def client(served: Endpoint) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create(served), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://here")


async def echoed(table: pa.Table) -> Reply:
    """A row a mention, of status nil."""
    document = table.to_pylist()[0]
    rows = [
        {name: None for name in LINK.names}
        | {"document_id": document["document_id"], "status": "error" if document["error"] else "nil"}
        | {"error": document["error"], "fingerprint": "print", "mention": m["mention"]}
        for m in document["given"] or [{"mention": None}]
    ]
    return Reply(pa.Table.from_pylist(rows, LINK), {"encode": 0.1})
