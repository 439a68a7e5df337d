"""Why a job ends before its time, in words for the person who started it."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from traceback import format_exception

from gemel_ray.job.filters import FILTERED
from gemel_ray.job.record import Record
from gemel_ray.job.results import WORKERS
from gemel_ray.job.stopped import Stopped, Terminated
from gemel_ray.storage import Folder

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
