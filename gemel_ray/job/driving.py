"""A job from start to end, whatever computes it: which documents it takes, progress, merging, errors.

`link` computes with Ray (offline.py); a study without a language model, and the tests, in one process. Knows
nothing of Ray and models.
"""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from traceback import format_exception

from gemel_ray.config import Config
from gemel_ray.errors import Stopped, Terminated
from gemel_ray.job import results
from gemel_ray.job.index import all_done, finished
from gemel_ray.job.inputs import InputFiles, unchanged
from gemel_ray.job.merging import Merging
from gemel_ray.job.record import BatchCounts, Record, receive_warnings, report_retried
from gemel_ray.job.results import WORKERS
from gemel_ray.job.selection import Done, Filters, Selection, Share
from gemel_ray.job.worker import Attempts, Worker, batch_counts, write_measures
from gemel_ray.pictures.limits import FILTERED
from gemel_ray.progress import Progress
from gemel_ray.settings import Input
from gemel_ray.sizing import fitted
from gemel_ray.stage import Segment
from gemel_ray.storage import Folder, Place, folder_at

_ALL = Selection()


@dataclass(frozen=True)
class Job:
    """Links the selected documents of `inputs` that `output` lacks, or has with an error that contains the
    text `retry`. Stops when more than the share `max_error_rate` of its rows are errors."""

    inputs: Sequence[str]
    output: Place
    options: Input
    selection: Selection = _ALL
    retry: str | None = None
    max_error_rate: float = 1.0


@dataclass(frozen=True)
class Run:
    """One run of a job: its name, the input's files, the share it takes of each, and what is `done`."""

    name: str
    addresses: Sequence[str]
    shares: Sequence[Share]
    done: Done
    record: Record


# Computes a run; yields the counts of each batch (batch_counts) once it is written.
Compute = Callable[[Run], Iterator[BatchCounts]]
# Gets ready to compute the input's files. It refuses them before anything is touched.
Computing = Callable[[Sequence[str]], AbstractContextManager[Compute]]


def drive(job: Job, computing: Computing, report: Callable[[Progress], None]) -> Record:
    """Do the job; return its record. Raises Stopped where it cannot go on, also beyond `max_error_rate`
    (TooManyErrors): what is written stays, and the same job goes on. A row's error is only a row. Every
    check that can refuse the job is made before the run takes over the output folder. Where nothing is left
    to do, nothing gets ready to compute."""
    began, folder = time.time(), folder_at(job.output)
    files = InputFiles.of(job.inputs, folder)
    results.refuse_foreign(folder)
    with nullcontext(_nothing) if _finished(job, files) else computing(files.addresses) as compute:
        run = _begin(job, files, began, report)
        _finish(run, compute, job.max_error_rate, report)
    files.mark_finished(run.done, job.options)
    return run.record


def _finished(job: Job, files: InputFiles) -> bool:
    """Whether the output has every document of every file, as far as the files' stamps show."""
    whole = files.unchanged(job.options)
    if job.retry is not None or len(whole) < len(files.addresses):
        return False
    return all_done(folder_at(job.output), {files.keys[address]: n for address, n in whole.items()})


def _nothing(_: Run) -> Iterator[BatchCounts]:
    yield from ()


def _begin(job: Job, files: InputFiles, began: float, report: Callable[[Progress], None]) -> Run:
    """Take over the output folder; find out what is left to do."""
    folder = folder_at(job.output)
    name = results.prepare(folder)
    files.save()
    done, unread = finished(folder, job.retry), files.unchanged(job.options)
    report_retried(job.retry, done, report)
    shares = job.selection.of(files.addresses, files.keys, unread)
    total = job.selection.total(files.addresses, unread)
    record = Record(folder, max(0, total - len(done)), len(done), began)
    return Run(name, files.addresses, shares, done, record)


def _finish(run: Run, compute: Compute, max_error_rate: float, report: Callable[[Progress], None]) -> None:
    """Compute the run; count and merge what it writes."""
    folder, record = run.record.output, run.record
    with (
        faults_as_stopped(record, run.name),
        receive_warnings(folder, run.name, report),
        Merging(folder, run.name) as merging,
    ):
        for counts in compute(run):
            record.add(counts)
            merging.add(counts["part"], counts["documents"])
            report(Progress(counts["documents"], counts["statuses"]))
            TooManyErrors.unless(record, max_error_rate)
        TooManyErrors.unless(record, max_error_rate, least=1)
        merging.done = run.done


def in_this_process(run: Run, segment: Segment, options: Input) -> Iterator[BatchCounts]:
    """Compute a run here, one batch after the other, as Ray's workers do."""
    folder = run.record.output
    worker = Worker(segment, Attempts(folder, "here"), run.name, folder)
    for table in (table for share in run.shares for table in share.tables(run.done, Filters(options))):
        rows = asyncio.run(worker(table))
        write_measures(folder, "here", "", segment.measures())
        yield batch_counts(rows, run.name)


# Why a job ends early, in words for the person who started it.


_PLAIN = (ValueError, OSError, RuntimeError)  # whose messages say what to do
_ENOUGH = 200  # rows, before their share of errors says anything


class TooManyErrors(Stopped):
    """More of the rows failed than was allowed."""

    @classmethod
    def unless(cls, record: Record, allowed: float, least: int = _ENOUGH) -> None:
        """Raise it when, of at least `least` rows, more than the share `allowed` are errors."""
        failures, rows = record.failures, record.rows
        if rows < least or failures <= allowed * rows:
            return
        most, number = next(e for e in record.errors.most_common() if not e[0].startswith(FILTERED))
        raise cls(
            f"{failures:,} of {rows:,} rows are errors ({failures / rows:.1%}), more "
            f"than --max-error-rate {allowed:g} allows; {number:,} of them: {most}"
        )


def save_fault(output: Folder, run: str, fault: Exception) -> None:
    """In a worker: write what ends it, and with it the job, to a file for the driver. Ray passes on only the
    text of an exception with causes, and Ray Data puts a text before it."""
    output.write(_fault_file(run), json.dumps(_described(fault)).encode())


def _described(fault: Exception) -> dict[str, str]:
    why = f"{type(fault).__name__}: {fault}"
    return {"why": why, "plain": plain(fault), "trace": "".join(format_exception(fault))}


def plain(fault: Exception) -> str:
    """Its message, behind its kind unless the message alone says what to do."""
    words = str(fault)
    return words if words and isinstance(fault, _PLAIN) else f"{type(fault).__name__}: {words}"


def _fault_file(run: str) -> str:
    return f"{WORKERS}/fault-{run}"


@contextmanager
def faults_as_stopped(record: Record, run: str) -> Iterator[None]:
    """Write whatever ends the job inside to its record. A fault is raised as Stopped, with the message of the
    worker that failed, if one did; its traceback goes to DIR/traceback.txt."""
    try:
        yield
    except Stopped as reason:
        _write_stopped(record, str(reason))
        raise
    except KeyboardInterrupt:
        _write_stopped(record, "interrupted")
        raise
    except Exception as fault:
        try:
            described = json.loads(record.output.read(_fault_file(run)))
        except OSError:  # no worker failed: it is the driver's
            described = _described(fault)
        _write_stopped(record, described["why"])
        try:
            record.output.write("traceback.txt", described["trace"].encode())
        except OSError:
            raise Stopped(described["plain"]) from fault
        raise Stopped(f"{described['plain']}\nWhere it came from: {record.output}/traceback.txt") from fault


def _write_stopped(record: Record, why: str) -> None:
    with suppress(OSError):  # a full disk must not hide what ended the job
        record.write("stopped", why)


@contextmanager
def terminable() -> Iterator[None]:
    """Raise SIGTERM as Terminated inside, so that it ends the job in order."""

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


# `gemel-ray link --dry-run`: the plan of a job, and how long it may take.


def preview(config: Config, inputs: Sequence[str], output: Place, selection: Selection) -> str:
    """The plan in words: inputs, what is done, where it would run, and an estimate where there is one."""
    config = fitted(config, "offline")
    total, done = selection.total(inputs, unchanged(output, inputs, config.input)), results.number(output)
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


def _estimate(output: Place, left: int | None) -> str:
    folder = folder_at(output)
    if left == 0:
        return "nothing is left to do"
    if left is None or "progress.json" not in folder.names():
        return "no estimate: link --limit 500 first, or ask gemel-ray plan with the rates of gemel-ray bench"
    last = json.loads(folder.read("progress.json"))
    done, seconds = last["documents"]["done"], last["seconds"]
    if not done:
        return "no estimate: the last run did nothing"
    return (
        f"about {left * seconds / done / 60:,.0f} minutes, at the pace of the last run here "
        f"({done / seconds:.1f} documents a second, start-up included)"
    )
