"""Every stage except the language model, on any number of pairs: rows per second, and memory over time.

Real documents without their mentions, so that Detect finds them, repeated, each time with other words before
the text; their pictures recur. The last stage answers NIL to all. So everything except the engine is measured
at a size for which an engine would need days: reading, detecting, encoding, retrieving, assembling, Ray's
object store, writing, the driver.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from gemel_ray import nodes, offline
from gemel_ray.config import Config
from gemel_ray.graph import Graph
from gemel_ray.job import record, results
from gemel_ray.job.index import finished
from gemel_ray.job.selection import Filters, Selection
from gemel_ray.knowledge import versions
from gemel_ray.knowledge.remote import Shared
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.measuring.machine import Figures, look, machine
from gemel_ray.measuring.scale import Say, endless_documents
from gemel_ray.stage import Stage, Work, answer
from gemel_ray.stages.generate import Generate
from gemel_ray.storage import folder_at
from gemel_ray.study.variants import SCHEMA

_FILES = 16
_ROWS = 1000  # of a written file, at once
_LOOKS = 5.0  # seconds between two looks at memory


@dataclass(frozen=True, kw_only=True)
class AlwaysNil(Stage):
    """A stage in the place of Generate that answers NIL to every mention."""

    reads: ClassVar = Generate.reads
    writes: ClassVar = Generate.writes

    @property
    def name(self) -> str:
        return "generate"

    def start(self, workspace: Workspace, line: Sequence[Stage] = ()) -> Work:
        return _Nil(self)


class _Nil(Work):
    def __init__(self, stage: AlwaysNil) -> None:
        self.stage = stage

    def __call__(self, batch: pa.Table) -> pa.Table:
        table = answer(self.stage.writes, {n: [None] * len(batch) for n in self.stage.writes.names})
        return table.append_column("status", pa.array(["nil"] * len(batch)))


@dataclass(frozen=True)
class _Opening(offline.Opening):
    """A worker whose graph ends without an engine."""

    def graph(self, opened: Workspace) -> Graph:
        whole = linking_graph(self.config, opened)
        return replace(whole, stages=(*whole.stages[:-1], AlwaysNil()))


def flow(
    config: Config,
    workspace: Path,
    inputs: Sequence[str],
    output: Path,
    pairs: int,
    say: Say,
) -> Figures:
    """All figures."""
    say(f"writing {pairs:,} pairs")
    files, linked = _written(inputs, pairs, output / f"pairs-{pairs}"), output / "flowed"
    shutil.rmtree(linked, ignore_errors=True)
    run = results.prepare(linked)
    progress = record.Record(linked, pairs, 0)
    opening = _Opening(config, Shared.of(workspace), versions.current(workspace), folder_at(linked), run)
    looks: list[tuple[float, int, dict[str, float]]] = []
    with offline.running(config):
        data = offline.dataset(opening, Selection().of(files), finished(linked), Filters(config.input))
        for counts in offline.counted(data):
            progress.add(counts)
            if not looks or time.time() - progress.began - looks[-1][0] > _LOOKS:
                looks.append((time.time() - progress.began, progress.documents, look().private))
                say(f"{progress.documents:,} pairs, {looks[-1][2]}")
        spilled = nodes.spilled_mib()
    measures = progress.write("finished")["measures"]
    return {
        "machine": machine(),
        "pairs": progress.documents,
        "mentions": progress.rows,
        "seconds": round(looks[-1][0], 1),
        "pairs_per_second": _paces(looks),
        "rows_per_second_of_stage": {
            name: round(rows / measures["seconds"][name], 1) for name, rows in measures["rows"].items()
        },
        "own_memory_mib": _quarters(looks),
        "spilled_mib": spilled,
    }


def _paces(looks: list[tuple[float, int, dict[str, float]]]) -> dict[str, float]:
    """Pairs per second in each quarter, from the first batch on."""
    first, last = looks[0], looks[-1]
    marks = [first[1] + (last[1] - first[1]) * q / 4 for q in range(5)]
    at = [next(look for look in looks if look[1] >= mark) for mark in marks]
    named = zip(("first quarter", "second", "third", "last"), itertools.pairwise(at), strict=True)
    return {name: round((b[1] - a[1]) / max(b[0] - a[0], 1e-9), 1) for name, (a, b) in named}


def _quarters(looks: list[tuple[float, int, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The greatest private memory of each kind of process in the second quarter, and in the last."""
    whole = looks[-1][1]
    second = [m for _, n, m in looks if whole / 4 <= n < whole / 2]
    last = [m for _, n, m in looks if n >= 3 * whole / 4]
    kinds = sorted({kind for m in last for kind in m})
    return {
        kind: {
            "second quarter": max((m.get(kind, 0.0) for m in second), default=0.0),
            "last quarter": max(m.get(kind, 0.0) for m in last),
        }
        for kind in kinds
    }


def _written(inputs: Sequence[str], pairs: int, folder: Path) -> list[str]:
    """Write the pairs in files of equal size, unless they exist; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, files = endless_documents(inputs), []
    for number in range(_FILES):
        share = pairs // _FILES + (number < pairs % _FILES)
        path = folder / f"{number:05}.parquet"
        files.append(str(path))
        part = itertools.islice(rows, share)
        if path.exists() and pq.read_metadata(path).num_rows == share:
            continue
        with pq.ParquetWriter(path, SCHEMA) as writer:
            while some := [row | {"mentions": None} for row in itertools.islice(part, _ROWS)]:
                writer.write_table(pa.Table.from_pylist(some, SCHEMA))
    return files
