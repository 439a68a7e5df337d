"""The graph as a Ray Data job: files to Parquet, resumable.

    read (tasks, one a file) -> segment -> ... -> last segment, which writes its own results

Every worker starts its segment's stages once and takes several batches at a time, so the engine is
fed across batches. The last segment's worker writes (see results.py), and only counts come back to
the driver. Run again, the job reads which documents are there and does the rest. Only this file, online.py
and training/launch.py import ray.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gemel_ray import results
from gemel_ray.config import Config, SegmentOptions
from gemel_ray.graph import Segment
from gemel_ray.knowledge import versions
from gemel_ray.knowledge.workspace import Workspace, read_facts
from gemel_ray.linking import linking_graph
from gemel_ray.progress import Progress
from gemel_ray.readers import documents

_BLOCK = 128  # documents that travel together, and are told of together: some for every worker
_PACKAGES = ("gemel-ray", "ray", "torch", "transformers", "open_clip_torch", "qdrant-edge-py")


def link(
    config: Config,
    workspace: Path,
    inputs: Sequence[str],
    output: Path,
    report: Callable[[Progress], None],
) -> dict[str, Any]:
    """Link all documents of `inputs` that `output` does not hold yet; returns the manifest.

    Raises whatever stops the job: a fault of a stage, or of the cluster. Rows' own errors are rows.
    """
    import ray

    started = time.time()
    results.prepare(output)
    knowledge = versions.current(workspace)  # all workers' to the end, whatever becomes current meanwhile
    # One more than the segments', for reading.
    _prepare(config, sum(s.workers * s.cpus for s in config.offline.segments) + 1)
    measures: dict[str, Any] = {}
    try:
        opening = _Opening(config, workspace.resolve(), knowledge)
        dataset = _dataset(opening, inputs, output.resolve(), results.finished(output))
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                measures[row["worker"]] = json.loads(row["measures"])
                report(Progress(row["documents"], json.loads(row["statuses"])))
    finally:
        ray.shutdown()
    facts = read_facts(workspace, knowledge)
    manifest = {
        "inputs": list(inputs),
        **results.counts(output),
        "seconds": round(time.time() - started, 2),
        "measures": _summed(list(measures.values())),
        "workspace": {
            "path": str(workspace),
            "knowledge": knowledge,
            "version": facts["version"],
            "models": facts["models"],
        },
        "configuration": config.plain(),
        "versions": {package: version(package) for package in _PACKAGES},
    }
    (output / "manifest.json").write_text(json.dumps(manifest, indent=2))
    return manifest


def connect(address: str, cpus: float) -> Any:
    """Join the cluster at `address`, or, for `local`, start Ray here, quietly, with as many CPUs as asked for
    at least; Ray's context."""
    # Ray logs an error for every actor that Ray Data itself starts (its issue 53727): not ours to mend.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    cores = max(os.cpu_count() or 1, int(np.ceil(cpus)))
    local: dict[str, Any] = {"num_cpus": cores, "include_dashboard": False}
    return ray.init(
        address=address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        **(local if address == "local" else {}),
    )


def threads(asked: int, cpus: float, processes: int, address: str) -> int:
    """Of torch in a process, where Ray gives it one unless told: as many as `asked`; else what `cpus` say,
    or, on a Ray of our own, its share of the cores."""
    here = (os.cpu_count() or 1) // processes if address == "local" else 0
    return asked or max(1, here, int(cpus))


def _prepare(config: Config, cpus: float) -> None:
    """Connect, and make Ray Data quiet."""
    connect(config.offline.address, cpus)
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = int(config.offline.stall_minutes * 60)
    for name in ("ray.data", "ray.data._internal.execution.streaming_executor"):
        logging.getLogger(name).setLevel(logging.ERROR)  # Ray gives them levels of their own on import


@dataclass(frozen=True)
class _Opening:
    """What every worker opens."""

    config: Config
    workspace: Path
    knowledge: str

    def segment(self, stages: Sequence[str]) -> Segment:
        opened = Workspace.open(self.workspace, self.config, self.knowledge)
        return linking_graph(self.config, opened).segment(stages, opened)


def _dataset(opening: _Opening, inputs: Sequence[str], output: Path, done: results.Keys) -> Any:
    """Addresses, to documents not yet done, through the segments, to what was written."""
    import ray

    config = opening.config
    skip = ray.put(done)
    dataset = ray.data.from_items([{"address": a} for a in inputs], override_num_blocks=len(inputs))
    dataset = dataset.map_batches(
        _read,
        batch_size=1,
        fn_kwargs={"done": skip, "fetch": config.input.fetch_official_images},
        num_cpus=0.5,
    ).repartition(target_num_rows_per_block=_BLOCK)
    segments = config.offline.segments
    for number, options in enumerate(segments):
        last = number == len(segments) - 1
        calls = max(2, options.overlap)
        dataset = dataset.map_batches(
            _Worker,
            fn_constructor_args=(opening, options, str(output) if last else None),
            batch_size=options.batch,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=options.workers,
                max_tasks_in_flight_per_actor=calls,
                max_concurrent_calls_per_actor=calls,
            ),
            num_cpus=options.cpus,
            num_gpus=options.gpus,
            runtime_env={"env_vars": _environment(config, options)},
        )
    return dataset


def _environment(config: Config, options: SegmentOptions) -> dict[str, str]:
    """The engine's other settings are its own."""
    count = threads(options.threads, options.cpus, options.workers, config.offline.address)
    return {
        "OMP_NUM_THREADS": str(count),
        "RAY_DATA_DEFAULT_ASYNC_BATCH_UDF_MAX_CONCURRENCY": str(options.overlap),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def _read(batch: dict[str, Any], done: Any, fetch: bool) -> Iterator[pa.Table]:
    """Documents of one file that are not done yet; `done` refers to their sorted hashes."""
    import ray

    finished = ray.get(done)
    for address in batch["address"]:
        for table in documents(str(address), fetch_official_images=fetch):
            new = ~np.isin(results.keys(table["document_id"].to_pylist()), finished)
            if new.any():
                yield table.filter(pa.array(new))


class _Worker:
    """A segment of the graph in a Ray actor. The last one writes, and returns only what it counted."""

    def __init__(self, opening: _Opening, options: SegmentOptions, output: str | None) -> None:
        self.segment: Segment = opening.segment(options.stages)
        self.output = Path(output) if output else None
        self.name = f"{'+'.join(options.stages)}-{os.getpid()}-{time.time_ns()}"

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        rows = await self.segment.run(batch)
        if self.output is None:
            yield rows
            return
        results.write(rows, self.output)
        counted = {
            "worker": self.name,
            "documents": len(rows["document_id"].unique()),
            "statuses": json.dumps(Counter(rows["status"].to_pylist())),
            "measures": json.dumps(self.segment.measures()),
        }
        yield pa.Table.from_pylist([counted])

    def __del__(self) -> None:
        if hasattr(self, "segment"):
            self.segment.close()


def _summed(parts: Sequence[Any]) -> dict[str, Any]:
    """Nested numbers of all workers, added up."""
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            nested = isinstance(value, dict)
            total[name] = _summed([total.get(name, {}), value]) if nested else total.get(name, 0) + value
    return total
