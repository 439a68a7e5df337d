"""Inputs whose storage fails while they are read: a real server that breaks off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pyarrow as pa
import pytest
from live import answering

from gemel_ray.job import results
from gemel_ray.job.index import finished
from gemel_ray.job.selection import Filters, Selection
from gemel_ray.job.worker import write_part
from gemel_ray.readers import documents, reading
from gemel_ray.settings import Input
from gemel_ray.storage import folder_at

BODY = "".join(json.dumps({"id": f"d{i}", "text": "Adobe " * 20}) + "\n" for i in range(2000)).encode()


class _Breaking(BaseHTTPRequestHandler):
    """Gives the file; while `breaks` is above 0, only its first half."""

    breaks = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        if type(self).breaks:
            type(self).breaks -= 1
            self.wfile.write(BODY[: len(BODY) // 2])
            self.close_connection = True
        else:
            self.wfile.write(BODY)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(reading, "_PAUSES", (0.01, 0.01, 0.01))
    with answering(_Breaking) as at:
        yield f"{at}/in.jsonl"


def test_a_file_is_read_on_where_its_storage_broke_off(address: str) -> None:
    _Breaking.breaks = 2
    ids = [i for table in documents(address) for i in table["document_id"].to_pylist()]
    assert ids == [f"d{i}" for i in range(2000)]
    assert _Breaking.breaks == 0


def test_what_cannot_be_had_is_a_row_and_is_asked_for_by_the_next_run(address: str, tmp_path: Path) -> None:
    _Breaking.breaks = 100
    tables = list(documents(address))
    last = tables[-1].to_pylist()[-1]
    assert "cannot read http://127.0.0.1" in last["error"]
    assert last["source"] == f"{address}:rest"
    run = results.prepare(tmp_path)
    (share,) = Selection().of([address])
    for table in share.tables(finished(tmp_path), Filters(Input())):
        rows = table.select(["document_id", "source"]).append_column(
            "status", pa.nulls(len(table), pa.string())
        )
        write_part(rows, folder_at(tmp_path), run)
    results.prepare(tmp_path)
    done = finished(tmp_path)
    assert len(done) == sum(map(len, tables)) - 1
    _Breaking.breaks = 0
    new = [i for t in share.tables(done, Filters(Input())) for i in t["document_id"].to_pylist()]
    assert new == [f"d{i}" for i in range(len(done), 2000)]
