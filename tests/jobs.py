"""Jobs whose one stage is deadly.py's: in this process without Ray, and on Ray in processes to be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import deadly
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from gemel_ray.config import Config
from gemel_ray.job import results
from gemel_ray.job.driving import Compute, Job, Run, drive, in_this_process
from gemel_ray.job.record import BatchCounts
from gemel_ray.job.selection import Selection
from gemel_ray.job.worker import Worker
from gemel_ray.settings import Input
from gemel_ray.storage import folder_at

_ALL = Selection()
COMMAND = [sys.executable, str(Path(__file__).with_name("deadly.py"))]
ROWS = 3000  # enough to be killed in
ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parent)}  # workers import deadly, too


def lines(folder: Path, texts: list[str], name: str = "in.jsonl") -> str:
    file = folder / name
    rows = ({"id": f"{name}-{i}", "text": text, "mentions": []} for i, text in enumerate(texts))
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(file)


def worker(output: Path, run: str | None = None, fingerprint: str = "deadly") -> Worker:
    run = run or results.latest(folder_at(output)).run
    opening = deadly.Opening(Config(), folder_at(output), run, deadly.Deadly(), fingerprint)
    return opening.worker(["deadly"])


def run_once(
    output: Path,
    files: list[str],
    selection: Selection = _ALL,
    retry: str | None = None,
    fingerprint: str = "deadly",
) -> int:
    """A run, as offline.link makes it, but for Ray; how many documents it did."""

    @contextmanager
    def computing(_: Sequence[str]) -> Iterator[Compute]:
        yield compute

    def compute(run: Run) -> Iterator[BatchCounts]:
        return in_this_process(run, worker(output, run.name, fingerprint).segment, Input())

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


# As a process


def written(folder: Path, texts: dict[int, str] | None = None, rows: int = ROWS) -> Path:
    """Documents d0, d1, ... without pictures."""
    file = folder / "in.jsonl"
    lines = ({"id": f"d{i}", "text": (texts or {}).get(i, "sleep"), "mentions": []} for i in range(rows))
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def started(file: Path | str, output: Path | str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, str(file), str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | ENVIRONMENT | environment,
    )


def undisturbed(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of a job on those documents that nothing happens to."""
    folder.mkdir()
    file = written(folder, dict.fromkeys(range(ROWS), "works"))
    run_once(folder / "out", [str(file)])
    return rows_of(folder / "out")


def rows_of(output: Path | str) -> dict[str, dict[str, Any]]:
    found = pa.concat_tables(results.tables(output)).to_pylist()
    by_id = {row["document_id"]: row for row in found}
    assert len(by_id) == len(found), "a row is there twice"
    return by_id


def first_links(output: Path | str, process: subprocess.Popen[bytes]) -> None:
    """Wait until something is written."""
    until = time.monotonic() + 400
    while not results.files(output):
        assert process.poll() is None, process.communicate()[1].decode()[-2000:]
        assert time.monotonic() < until
        time.sleep(0.05)


def processes(parent: int, title: str) -> list[psutil.Process]:
    """Its children, and theirs, whose command line begins so."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(title):
                found.append(process)
    return found
