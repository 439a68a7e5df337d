"""Runs of a job as offline.link makes them, but for Ray: all in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deadly
import pyarrow.parquet as pq

from gemel_ray.graph import Graph
from gemel_ray.job.driving import Compute, Job, Run, drive
from gemel_ray.job.selection import Filters, Selection
from gemel_ray.job.worker import Attempts, Worker, batch_counts, with_source_column
from gemel_ray.records import DOCUMENT, LINK
from gemel_ray.settings import Input
from gemel_ray.storage import folder_at

_ALL = Selection()


def lines(folder: Path, texts: list[str], name: str = "in.jsonl") -> str:
    file = folder / name
    rows = ({"id": f"{name}-{i}", "text": text, "mentions": []} for i, text in enumerate(texts))
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(file)


def worker(output: Path, run: str | None = None) -> Worker:
    graph = with_source_column(Graph((deadly.Deadly(),), DOCUMENT, LINK, "deadly"))
    segment = graph.segment(["deadly"], None)  # type: ignore[arg-type]
    return Worker(segment, Attempts(folder_at(output), "deadly"), folder_at(output), run)


def run_once(output: Path, files: list[str], selection: Selection = _ALL, retry: str | None = None) -> int:
    """A run, as offline.link makes it, but for Ray; how many documents it did."""

    @contextmanager
    def computing(_: Sequence[str]) -> Iterator[Compute]:
        yield compute

    def compute(run: Run) -> Iterator[dict[str, Any]]:
        work = worker(output, run.name)
        tables = (table for share in run.shares for table in share.tables(run.done, Filters(Input())))
        yield from (batch_counts(asyncio.run(work(table)), run.name) for table in tables)

    return drive(Job(files, output, Input(), selection, retry), computing, lambda _: None).documents


def linked(output: Path) -> list[str]:
    """Ids of what stands in the files that people read, each as often as it is there."""
    tables = (pq.read_table(file) for file in sorted((output / "links").glob("*.parquet")))
    return sorted(i for table in tables for i in table["document_id"].to_pylist())


def names(*numbers: int, file: str = "in.jsonl") -> list[str]:
    return sorted(f"{file}-{n}" for n in numbers)


def edited(file: str, change: dict[int, str]) -> None:
    """The file with some lines' texts changed, and a line put in where there was none."""
    rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
    for number, text in change.items():
        new = {"id": f"in.jsonl-{number}", "text": text, "mentions": []}
        at = next((i for i, row in enumerate(rows) if row["id"] == new["id"]), None)
        if at is None:
            rows.insert(len(rows) // 2, new)
        else:
            rows[at] = new
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))
