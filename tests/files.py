"""Where the tests' data lies, and JSON Lines as they write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from gemel_ray.job import results
from gemel_ray.job.worker import write_part
from gemel_ray.records import LINK
from gemel_ray.storage import folder_at

HOUSE = Path(__file__).parents[1]
DATA = HOUSE / "gemel_ray" / "starter" / "data"
TEST = DATA / "test.parquet"
SHARED = HOUSE.parent / "shared" / "data"  # real captions, where the machine has them


def lines(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def write_links(rows: list[dict[str, Any]], output: Path) -> None:
    """Links as a job's worker writes them, in an output folder of their own."""
    run = results.prepare(output)
    sources = pa.array([row["document_id"] for row in rows], pa.string())
    write_part(pa.Table.from_pylist(rows, LINK).append_column("source", sources), folder_at(output), run)
