"""Why a job ends before its time, in words for the person who started it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gemel_ray.job.filters import FILTERED
from gemel_ray.job.record import Record
from gemel_ray.job.stopped import Stopped

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


@contextmanager
def plainly(told: Record) -> Iterator[None]:
    """What ends the job inside is noted in its record; a worker's own fault, which Ray wraps in its own, is
    raised as Stopped, with its words."""
    try:
        yield
    except Stopped as reason:
        told.write("stopped", str(reason))
        raise
    except KeyboardInterrupt:
        told.write("stopped", "interrupted")
        raise
    except Exception as fault:
        inner = _innermost(fault)
        told.write("stopped", f"{type(inner).__name__}: {inner}")
        raise Stopped(str(inner)) from fault


def _innermost(fault: BaseException) -> BaseException:
    """What was raised in the worker: Ray's errors carry it as `cause`, Ray Data's as Python's cause."""
    seen = set[int]()
    while id(fault) not in seen:
        seen.add(id(fault))
        inner = getattr(fault, "cause", None) or fault.__cause__
        if not isinstance(inner, BaseException):
            break
        fault = inner
    return fault
