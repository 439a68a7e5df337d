"""A job from its beginning to its end, whatever computes it: what is taken, counted, said, merged and noted.

`link` computes with Ray (offline.py), the tests in one process. Knows nothing of Ray and models.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from traceback import format_exception
from typing import Any

from gemel_ray.config import Config
from gemel_ray.errors import Stopped, Terminated
from gemel_ray.job import record, results
from gemel_ray.job.index import Done
from gemel_ray.job.inputs import Given, unchanged
from gemel_ray.job.merging import Merging
from gemel_ray.job.record import Record
from gemel_ray.job.results import WORKERS
from gemel_ray.job.selection import FILTERED, Selection, Share
from gemel_ray.progress import Progress
from gemel_ray.settings import Input
from gemel_ray.sizing import fitted
from gemel_ray.storage import Folder, Place, folder_at

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


# Of a run: what each batch added (record.counted), as it is written.
Compute = Callable[[Run], Iterator[Mapping[str, Any]]]
# For the input's files: what makes ready to compute. What refuses them, refuses before anything is touched.
Computing = Callable[[Sequence[str]], AbstractContextManager[Compute]]


def drive(job: Job, computing: Computing, report: Callable[[Progress], None]) -> Record:
    """Do the job; what came of it. Raises Stopped where it cannot go on, also beyond `max_error_rate`
    (TooManyErrors): what is written stays, and the same job goes on. Rows' own errors are rows. Whatever can
    refuse the job is asked before the output folder is this run's."""
    began, at = time.time(), folder_at(job.output)
    given = Given.of(job.inputs, at)
    results.refuse_foreign(at)
    with computing(given.addresses) as compute:
        run = _taken(job, given, began, report)
        _through(run, compute, job.max_error_rate, report)
    given.finished(run.done, job.asked)
    return run.record


def _taken(job: Job, given: Given, began: float, report: Callable[[Progress], None]) -> Run:
    """The output folder is this run's from here on."""
    at = folder_at(job.output)
    name = results.prepare(at)
    given.note()
    done, known = results.finished(at, job.retry), given.unchanged(job.asked)
    record.retried(job.retry, done, report)
    shares = job.selection.of(given.addresses, given.keys, known)
    total = job.selection.total(given.addresses, known)
    told = Record(at, max(0, total - len(done)), len(done), began)
    return Run(name, given.addresses, shares, done, told)


def _through(run: Run, compute: Compute, max_error_rate: float, report: Callable[[Progress], None]) -> None:
    at, told = run.record.output, run.record
    with plainly(told, run.name), record.heard(at, run.name, report), Merging(at, run.name) as merging:
        for counts in compute(run):
            told.add(counts)
            merging.add(counts["part"], counts["documents"])
            report(Progress(counts["documents"], counts["statuses"]))
            TooManyErrors.unless(told, max_error_rate)
        TooManyErrors.unless(told, max_error_rate, least=1)
        merging.done = run.done


# Why a job ends before its time, in words for the person who started it.


_PLAIN = (ValueError, OSError, RuntimeError)  # whose words say what to do
_ENOUGH = 200  # rows, before their share of errors says anything


class TooManyErrors(Stopped):
    """More of the rows failed than was allowed."""

    @classmethod
    def unless(cls, told: Record, allowed: float, least: int = _ENOUGH) -> None:
        """Raise it when, of at least `least` rows, more than the share `allowed` are errors."""
        if told.rows < least or told.failures <= allowed * told.rows:
            return
        most, number = next(e for e in told.errors.most_common() if not e[0].startswith(FILTERED))
        raise cls(
            f"{told.failures:,} of {told.rows:,} rows are errors ({told.failures / told.rows:.1%}), more "
            f"than --max-error-rate {allowed:g} allows; {number:,} of them: {most}"
        )


def note(output: Folder, run: str, fault: Exception) -> None:
    """Of a run's worker: what ends it, and with it the job. Of an exception with causes Ray brings no more
    than a text, and Ray Data puts its own words before it."""
    output.write(_noted(run), json.dumps(_said(fault)).encode())


def _said(fault: Exception) -> dict[str, str]:
    name, words = type(fault).__name__, str(fault)
    plain = words if words and isinstance(fault, _PLAIN) else f"{name}: {words}"
    return {"why": f"{name}: {words}", "plain": plain, "trace": "".join(format_exception(fault))}


def _noted(run: str) -> str:
    return f"{WORKERS}/fault-{run}"


@contextmanager
def plainly(told: Record, run: str) -> Iterator[None]:
    """What ends the job inside is noted in its record. A fault is raised as Stopped, with the words of the
    worker that met it, if one did; where it came from is written to DIR/traceback.txt."""
    try:
        yield
    except Stopped as reason:
        _record(told, str(reason))
        raise
    except KeyboardInterrupt:
        _record(told, "interrupted")
        raise
    except Exception as fault:
        try:
            said = json.loads(told.output.read(_noted(run)))
        except OSError:  # of the driver's own
            said = _said(fault)
        _record(told, said["why"])
        try:
            told.output.write("traceback.txt", said["trace"].encode())
        except OSError:
            raise Stopped(said["plain"]) from fault
        raise Stopped(f"{said['plain']}\nWhere it came from: {told.output}/traceback.txt") from fault


def _record(told: Record, why: str) -> None:
    with suppress(OSError):  # a full disk: what ended the job is said all the same
        told.write("stopped", why)


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM ends the job in order: it is raised as Terminated."""

    def end(*_: object) -> None:
        raise Terminated("terminated (SIGTERM)")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


# What `gemel-ray link --dry-run` says: the plan of a job, and how long it may take.


def preview(config: Config, inputs: Sequence[str], output: Place, selection: Selection) -> str:
    """The plan in words: inputs, what is done, where it would run, and an estimate where there is one."""
    config = fitted(config, "offline")
    total, done = selection.total(inputs, unchanged(output, inputs, config.input)), _done(output)
    known = f"{total:,} documents" if total else "an unknown number of documents"
    lines = [f"{len(inputs):,} files with {known}, of which {done:,} are in {output} already"]
    lines.append(f"Ray: {config.offline.address}")
    for segment in config.offline.segments:
        lines.append(
            f"  {segment.workers} x [{' '.join(segment.stages)}]: {segment.cpus:g} CPUs and "
            f"{segment.gpus:g} GPUs each, {segment.batch} documents at once, {segment.overlap} times over"
        )
    lines.append(f"language model: {config.models.language}, {config.generate.beams} beams, "
                 f"{config.retrieve.demonstrations} demonstrations")  # fmt: skip
    lines.append(_estimate(output, max(0, total - done) if total else None))
    return "\n".join(lines)


def _done(output: Place) -> int:
    """Without mending anything."""
    return results.number(output)


def _estimate(output: Place, left: int | None) -> str:
    at = folder_at(output)
    if left == 0:
        return "nothing is left to do"
    if left is None or "progress.json" not in at.names():
        return "no estimate: link --limit 500 first, or ask gemel-ray plan with the rates of gemel-ray bench"
    last = json.loads(at.read("progress.json"))
    done, seconds = last["documents"]["done"], last["seconds"]
    if not done:
        return "no estimate: the last run did nothing"
    return (
        f"about {left * seconds / done / 60:,.0f} minutes, at the pace of the last run here "
        f"({done / seconds:.1f} documents a second, start-up included)"
    )
