"""The graph as a Ray Data job: files to Parquet, resumable.

    read (tasks, one a file) -> segment -> ... -> last segment, which writes its results

Every worker starts its segment's stages once and takes several batches at a time, so that the engine is fed
across batches; job/worker.py says what happens when it dies. The last segment's worker writes
(job/results.py); only counts come back to the driver. Run again, the job does the documents that are missing.
Only this file, nodes.py, online.py and training/launch.py import ray.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from gemel_ray import nodes
from gemel_ray.config import Config
from gemel_ray.environment import fast_start, variables
from gemel_ray.errors import Stopped
from gemel_ray.graph import Graph
from gemel_ray.job import record, shared
from gemel_ray.job.driving import Compute, Job, Run, drive, save_fault, terminable
from gemel_ray.job.record import BatchCounts, Manifest, Metrics, write_manifest
from gemel_ray.job.selection import Done, Filters, Keys, Selection, Share, contents_of, repeated
from gemel_ray.job.shared import SharedPath
from gemel_ray.job.worker import Attempts, Worker, batch_counts, with_source_column, write_measures
from gemel_ray.knowledge import versions
from gemel_ray.knowledge.remote import Shared
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.progress import Progress
from gemel_ray.records import Row
from gemel_ray.settings import Input
from gemel_ray.sizing import fitted
from gemel_ray.storage import Folder, Place, folder_at

_BLOCK = 128  # documents that travel and are counted together: small, so that every worker gets some
_READING = 1.0  # CPU, for two files at once
_ALL = Selection()


def link(
    config: Config,
    workspace: Path,
    inputs: Sequence[str],
    output: Place,
    report: Callable[[Progress], None],
    *,
    selection: Selection = _ALL,
    max_error_rate: float = 1.0,
    retry: str | None = None,
) -> Manifest:
    """Link the selected documents of `inputs` that `output` lacks, or has with an error that contains the
    text `retry`; returns the manifest.

    Raises Stopped where the job cannot go on, also beyond `max_error_rate` of its rows (TooManyErrors): what
    is written stays, and the same call goes on. A row's error is only a row.
    """
    config, shared_by_all = fitted(config, "offline"), Shared.of(workspace)
    knowledge = versions.current(workspace)  # all workers keep it to the end, though another becomes current

    @contextmanager
    def computing(addresses: Sequence[str]) -> Iterator[Compute]:
        def compute(run: Run) -> Iterator[BatchCounts]:
            run.record.metrics = metrics
            opening = Opening.of(config, shared_by_all, knowledge, folder_at(output), run.name)
            _refuse_mismatch(opening.seen)  # an output folder that was made just now
            filters = Filters(config.input, *_repeated(run.addresses, config.input))
            yield from counted(dataset(opening, run.shares, run.done, filters))

        with running(config) as metrics:
            if config.offline.address != "local":
                if lacking := nodes.lacking(config.offline.segments, _READING):
                    report(Progress(0, {}, lacking))
                seen = shared.of_worker(shared_by_all, knowledge, folder_at(output))
                _refuse_mismatch((*seen, *shared.of_job(config, addresses)))
            yield compute

    job = Job(inputs, output, config.input, selection, retry, max_error_rate)
    finished = drive(job, computing, report)
    return write_manifest(config, workspace, inputs, finished, knowledge)


@contextmanager
def running(config: Config) -> Iterator[Metrics]:
    """Join or start Ray, silence Ray Data, and leave Ray at the end. Yields the job's Prometheus metrics."""
    cpus = sum(s.workers * s.cpus for s in config.offline.segments) + _READING
    try:
        nodes.connect(config.offline.address, cpus)
    except (OSError, RuntimeError, ValueError) as fault:
        raise Stopped(str(fault)) from fault
    import ray
    from ray.util.metrics import Gauge

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.memory_usage_poll_interval_s = None  # else it reads all workers' memory maps every second
    context.execution_no_progress_timeout_s = int(config.offline.stall_minutes * 60)
    for name in ("", "._internal.execution.streaming_executor", ".exceptions"):
        logging.getLogger(f"ray.data{name}").setLevel(logging.CRITICAL)  # the job reports what went wrong
    try:
        with terminable():  # Ray's handler would exit at once
            yield Metrics(Gauge)
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Opening:
    """What every worker opens."""

    config: Config
    workspace: Shared
    knowledge: str
    output: Folder
    run: str
    seen: tuple[SharedPath, ...] = ()  # as every node must see them

    @classmethod
    def of(cls, config: Config, workspace: Shared, knowledge: str, output: Folder, run: str) -> Opening:
        alone = config.offline.address == "local"
        seen = () if alone else shared.of_worker(workspace, knowledge, output)
        return cls(config, workspace, knowledge, output, run, seen)

    @property
    def line(self) -> Graph:
        """The stages that the segments cut."""
        return self.config.line

    def graph(self, opened: Workspace) -> Graph:
        return linking_graph(self.config, opened)

    def worker(self, stages: Sequence[str]) -> Worker:
        shared.check_here(self.seen)
        opened = Workspace.open(self.workspace.here(), self.config, self.knowledge)
        graph = with_source_column(self.graph(opened))
        output = self.output if stages[-1] == graph.stages[-1].name else None
        attempts = Attempts(self.output, "+".join(stages))
        return Worker(graph.segment(stages, opened), attempts, self.run, output)


def _refuse_mismatch(seen: Sequence[SharedPath]) -> None:
    """Raise Stopped where a node does not see the files that all must see."""
    if seen and (sentence := nodes.mismatch(seen)):
        raise Stopped(sentence)


def dataset(opening: Opening, shares: Sequence[Share], done: Done, filters: Filters) -> Any:
    """From files, to documents not yet done, through the segments, to a row with `counts` for each batch that
    was written. `opening` makes the workers."""
    import ray

    config = opening.config
    data = ray.data.from_items([{"share": s} for s in shares], override_num_blocks=max(1, len(shares)))
    data = data.map_batches(_read, batch_size=1, fn_kwargs={"common": ray.put((done, filters))}, num_cpus=0.5)
    data = data.repartition(target_num_rows_per_block=_BLOCK)
    placed = nodes.in_turn(config.offline)
    for options, whole in opening.line.cut(config.offline.segments):
        calls = max(2, options.overlap)
        # Not map_batches, which refuses whole blocks on GPUs.
        data = data.map_batches_internal(
            _Actor,
            fn_constructor_args=(opening, options.stages),
            # After a stage that multiplies rows a block is whole documents, and stays whole.
            batch_size=options.batch if whole else None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=options.workers,
                max_tasks_in_flight_per_actor=calls,
                max_concurrent_calls_per_actor=calls,
            ),
            num_cpus=options.cpus,
            num_gpus=options.gpus,
            ray_remote_args_fn=placed() if options.gpus else None,  # asked before each worker is made
            runtime_env={
                "env_vars": {
                    **variables(options, options.workers, config.offline.address),
                    "RAY_DATA_DEFAULT_ASYNC_BATCH_UDF_MAX_CONCURRENCY": str(options.overlap),
                }
            },
        )
    return data


def counted(data: Any) -> Iterator[BatchCounts]:
    """Run the dataset; yield the counts of each batch (job/record.py) once it is written."""
    for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from (json.loads(row["counts"]) for row in batch.to_pylist())


def _read(batch: Row, common: Any) -> Iterator[pa.Table]:
    """The documents that a run takes of a file; `common` refers to those done and the filters."""
    import ray

    done, filters = ray.get(common)
    yield from (table for share in batch["share"] for table in share.tables(done, filters))


def _repeated(addresses: Sequence[str], options: Input) -> Iterator[Keys]:
    """If duplicates are dropped: the documents whose content came before, by a first pass over all files."""
    import ray

    if options.duplicates == "drop":
        read = ray.remote(num_cpus=0.5)(contents_of)
        yield repeated(ray.get([read.remote(a, options.fetch_official_images) for a in addresses]))


class _Actor:
    """A worker in a Ray actor. In the last segment, it returns counts. An error at its start is raised at its
    first batch: Ray Data takes an earlier one for a fault of Ray's."""

    def __init__(self, opening: Opening, stages: Sequence[str]) -> None:
        import ray

        self.opening, self.fault, self.node = opening, None, ray.get_runtime_context().get_node_id()
        self.gpus = list(map(str, ray.get_gpu_ids()))
        record.send_warnings(opening.output, opening.run)
        try:
            with fast_start():
                self.worker = opening.worker(stages)
        except Exception as fault:
            self.fault = fault
        self.name = f"{'+'.join(stages)}-{os.getpid()}-{time.time_ns()}"

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        try:
            if self.fault:
                raise self.fault
            rows = await self.worker(batch)
        except Exception as fault:
            save_fault(self.opening.output, self.opening.run, fault)
            raise
        measures = self.worker.segment.measures()
        await asyncio.to_thread(
            write_measures, self.opening.output, self.name, self.node, measures, self.gpus
        )
        if self.worker.output is None:
            yield rows
        else:
            yield pa.table({"counts": [json.dumps(batch_counts(rows, self.opening.run))]})

    def __del__(self) -> None:
        if hasattr(self, "worker"):
            self.worker.segment.close()
