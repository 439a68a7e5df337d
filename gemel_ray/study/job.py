"""The job of one cell: on Ray like any other, or, where no language model is asked, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gemel_ray.config import Config
from gemel_ray.job.driving import Compute, Job, Run, drive
from gemel_ray.job.record import BatchCounts, Record, write_manifest
from gemel_ray.job.selection import Filters
from gemel_ray.job.worker import Attempts, Worker, batch_counts, with_source_column, write_measures
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.offline import link
from gemel_ray.progress import Progress
from gemel_ray.stages.answering import asks_model
from gemel_ray.storage import folder_at

Report = Callable[[Progress], None]


def run_job(config: Config, workspace: Path, inputs: Sequence[str], output: Path, report: Report) -> None:
    """Link the documents of `inputs`; what `output` has already is not done again."""
    opened = Workspace.open(workspace, config)
    if asks_model(config.generate, config.retrieve, opened):
        link(config, workspace, inputs, output, report)
    else:
        finished = _done_here(config, opened, inputs, output, report)
        write_manifest(config, workspace, inputs, finished, opened.knowledge)


def _done_here(
    config: Config, opened: Workspace, inputs: Sequence[str], output: Path, report: Report
) -> Record:
    """The same as `link`. Starting Ray and its workers would take longer than the work of a small job."""
    graph, folder = with_source_column(linking_graph(config, opened)), folder_at(output)

    @contextmanager
    def computing(_: Sequence[str]) -> Iterator[Compute]:
        segment = graph.segment(graph.names, opened)

        def compute(run: Run) -> Iterator[BatchCounts]:
            worker = Worker(segment, Attempts(folder, "study"), run.name, folder)
            filters = Filters(config.input)
            for table in (table for share in run.shares for table in share.tables(run.done, filters)):
                rows = asyncio.run(worker(table))
                write_measures(folder, "study", "", segment.measures())
                yield batch_counts(rows, run.name)

        try:
            yield compute
        finally:
            segment.close()

    return drive(Job(inputs, output, config.input), computing, report)
