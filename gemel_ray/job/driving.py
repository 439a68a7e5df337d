"""A job from its beginning to its end, whatever computes it: what is taken, counted, said, merged and noted.

`link` computes with Ray (offline.py), the tests in one process. Knows nothing of Ray, models or workspaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from gemel_ray.job import results, said
from gemel_ray.job.index import Done
from gemel_ray.job.inputs import Given
from gemel_ray.job.merging import Merging
from gemel_ray.job.record import Record
from gemel_ray.job.selection import Selection, Share
from gemel_ray.job.stopping import TooManyErrors, plainly
from gemel_ray.object_folder import Place, folder_at
from gemel_ray.progress import Progress
from gemel_ray.settings import Input

_ALL = Selection()


@dataclass(frozen=True)
class Job:
    """The documents of `inputs` that are selected and that `output` does not hold yet, or holds with an error
    that has the text `retry` in it. `max_error_rate`: of its rows, beyond which it stops."""

    inputs: Sequence[str]
    output: Place
    asked: Input
    selection: Selection = _ALL
    retry: str | None = None
    max_error_rate: float = 1.0


@dataclass(frozen=True)
class Run:
    """What a run takes: its own name, the input's files, what of each, and what is `done`."""

    name: str
    addresses: Sequence[str]
    shares: Sequence[Share]
    done: Done
    record: Record


# For a run: what makes it ready, and gives what each batch added (record.counted), as it is written.
Computing = Callable[[Run], AbstractContextManager[Iterator[Mapping[str, Any]]]]


def drive(job: Job, computing: Computing, report: Callable[[Progress], None]) -> Record:
    """Do the job; what came of it. Raises Stopped where it cannot go on, also beyond `max_error_rate`
    (TooManyErrors): what is written stays, and the same job goes on. Rows' own errors are rows."""
    at = folder_at(job.output)
    given = Given.of(job.inputs, at)
    name = results.prepare(at)
    given.note()
    done, known = results.finished(at, job.retry), given.unchanged(job.asked)
    said.retried(job.retry, done, report)
    shares = job.selection.of(given.addresses, given.keys, known)
    total = job.selection.total(given.addresses, known)
    run = Run(name, given.addresses, shares, done, Record(at, max(0, total - len(done)), len(done)))
    with plainly(run.record, name), said.heard(at, name, report), Merging(at, name) as merging:
        with computing(run) as batches:
            for counts in batches:
                run.record.add(counts)
                merging.add(counts["part"], counts["documents"])
                report(Progress(counts["documents"], counts["statuses"]))
                TooManyErrors.unless(run.record, job.max_error_rate)
            TooManyErrors.unless(run.record, job.max_error_rate, least=1)
        merging.done = done
    given.finished(done, job.asked)
    return run.record
