"""Each stage before the engine alone, in as many processes as it may have: rows per second, processor
time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TypedDict

import pyarrow as pa

from gemel_ray.config import Config
from gemel_ray.graph import run_in_process
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.measuring.processes import in_new_processes, wait_for_all
from gemel_ray.readers import documents
from gemel_ray.stage import Segment

FRONT = ("detect", "encode", "retrieve", "assemble")
_SECONDS = 2.0  # of each stage, at least
_BATCH, _OVERLAP = 64, 4


class StageFigures(TypedDict):
    """The speed of one stage. `core_ms`: milliseconds of processor time per row."""

    per_second: float
    processes: int
    core_ms: float


def alone(
    config: Config, workspace: Path, inputs: Sequence[str], processes: int, seconds: float = _SECONDS
) -> dict[str, StageFigures]:
    """The figures of each stage except the last, without the others, on the same documents repeatedly."""
    parts = in_new_processes(processes, _measured, config, workspace, list(inputs), seconds)
    return {
        stage: {
            "per_second": round(sum(part[stage][0] for part in parts), 1),
            "processes": processes,
            "core_ms": round(sum(part[stage][1] for part in parts) / processes, 3),
        }
        for stage in FRONT
    }


def _measured(
    config: Config, workspace: Path, inputs: list[str], seconds: float
) -> dict[str, tuple[float, float]]:
    """Rows per second and processor milliseconds per row of every stage, in this process."""
    opened = Workspace.open(workspace, config)
    segment = linking_graph(config, opened).segment(FRONT, opened)
    tables = list(_batches(inputs))
    found: dict[str, tuple[float, float]] = {}
    try:
        for number in range(len(segment.steps)):
            one = segment.part(number, number + 1)
            following = list(run_in_process(one, iter(tables), _OVERLAP))  # also warms up
            wait_for_all()
            found[FRONT[number]] = _pace(one, tables, seconds)
            tables = following
    finally:
        segment.close()
    return found


def _pace(stage: Segment, tables: Sequence[pa.Table], seconds: float) -> tuple[float, float]:
    began, worked, rows = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        some = islice(cycle(tables), max(len(tables), _OVERLAP))
        rows += sum(len(table) for table in run_in_process(stage, some, _OVERLAP))
    return rows / (time.perf_counter() - began), 1000 * (time.process_time() - worked) / rows


def _batches(inputs: Sequence[str]) -> Iterator[pa.Table]:
    for file in inputs:
        yield from documents(file, batch=_BATCH)


def assembled(config: Config, workspace: Workspace, inputs: Sequence[str]) -> pa.Table:
    """All mentions of the files, as Generate reads them."""
    segment = linking_graph(config, workspace).segment(FRONT, workspace)
    try:
        return pa.concat_tables(run_in_process(segment, _batches(inputs), _OVERLAP))
    finally:
        segment.close()
