"""The time that a resumed run takes to find out what is done, on synthetic results of any size.

The results have the form and size of a job's; only their rows are empty.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from gemel_ray.errors import Mistake
from gemel_ray.job import index, results
from gemel_ray.job.index import RECORD, finished
from gemel_ray.job.merging import FILE
from gemel_ray.job.selection import file_key
from gemel_ray.job.worker import as_parquet
from gemel_ray.measuring.machine import Figures, machine
from gemel_ray.measuring.scale import Say
from gemel_ray.records import LINK
from gemel_ray.storage import folder_at

_INPUT = 100_000  # documents of one file of the input


def resume(output: Path, documents: int, say: Say) -> Figures:
    """All figures."""
    made = output / f"resumed-{documents}"
    if not results.latest(folder_at(made)).number:
        say(f"making up the results of {documents:,} documents")
        _make_up(made, documents)
    before, began = _memory(), time.perf_counter()
    results.prepare(made)
    prepared = time.perf_counter()
    done = finished(made)
    opened = time.perf_counter()
    known = done.of(file_key(_input(0)))
    selected = time.perf_counter()
    if len(done) != documents or int(known.left.sum()) != min(_INPUT, documents):
        raise Mistake(f"{made} is not what was made up: remove it")
    return {
        "machine": machine(),
        "documents": documents,
        "files": len(results.files(made)),
        "index_mib": sum(f.stat().st_size for f in (made / results.INDEX).iterdir()) / 2**20,
        "seconds": {
            "taking over": prepared - began,
            "what is done": opened - prepared,
            "of one file of the input": selected - opened,
            "whole": selected - began,
        },
        "memory_mib": {"before": before, "peak": _memory()},
    }


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _input(number: int) -> str:
    return f"/input/{number:05}.jsonl"


def _make_up(output: Path, documents: int) -> None:
    at, dice, files = folder_at(output), np.random.default_rng(0), []
    rows = [{"document_id": str(row), "status": "linked"} for row in range(FILE)]
    links = as_parquet(pa.Table.from_pylist(rows, LINK))
    for first in range(0, documents, FILE):
        numbers = np.arange(first, min(first + FILE, documents))
        records = np.zeros(len(numbers), RECORD)
        keys = np.array([file_key(_input(i)) for i in range(documents // _INPUT + 1)], np.uint64)
        records["file"], records["row"] = keys[numbers // _INPUT], numbers % _INPUT + 1
        records["digest"] = dice.integers(2**64, size=len(numbers), dtype=np.uint64)
        records["rows"] = 1
        name = f"{results.LINKS}/{first:010}-made-up.parquet"
        at.write(results.index_of(name), index.saved(records))
        at.write(name, links)
        files.append((name, len(numbers)))
    results.commit(at, results.State(number=1, run="made-up", files=tuple(files)))
