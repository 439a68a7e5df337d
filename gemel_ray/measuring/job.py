"""The offline job, run and timed from outside: first batch, pace, what a mention costs, memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from gemel_ray.config import Config
from gemel_ray.job.record import Manifest
from gemel_ray.measuring.machine import Look, looks, peaks
from gemel_ray.measuring.pace import Moment, Pace, steady
from gemel_ray.progress import Progress
from gemel_ray.sizing import fitted

_SHOWN = 0.5  # processor seconds: kinds of processes with less are not named


class JobFigures(TypedDict):
    """The figures of a job; memory and processor time by kind of process, `own`: not shared with others."""

    mentions: int
    seconds_to_first_batch: float
    core_seconds_to_first_batch: dict[str, float]
    mentions_per_second: float | None
    seconds: float
    core_ms_per_mention: dict[str, float] | None
    peak_mib: dict[str, float]
    own_peak_mib: dict[str, float]


def timed(
    config: Config, workspace: Path, inputs: Sequence[str], output: Path
) -> tuple[JobFigures, Manifest]:
    """The figures of a job, and its manifest. `output` must not contain links: otherwise resuming would be
    measured. The pace is None if all batches were in progress together."""
    from gemel_ray.offline import link

    config, results = fitted(config, "offline"), list[Moment]()
    began = time.perf_counter()

    def report(progress: Progress) -> None:
        results.append((time.perf_counter(), sum(progress.statuses.values())))

    with looks() as seen:
        manifest = link(config, workspace, inputs, output, report)
    last = config.offline.segments[-1]
    pace = steady(results, last.overlap * last.workers)
    figures: JobFigures = {
        "mentions": manifest["rows"],
        "seconds_to_first_batch": round(results[0][0] - began, 2),
        "core_seconds_to_first_batch": _start(seen, results[0][0]),
        "mentions_per_second": round(pace.rate, 3) if pace else None,
        "seconds": manifest["seconds"],
        "core_ms_per_mention": _core_ms(seen, results, pace) if pace else None,
        "peak_mib": peaks(look.resident for look in seen),
        "own_peak_mib": peaks(look.private for look in seen),
    }
    return figures, manifest


def _start(seen: Sequence[Look], until: float) -> dict[str, float]:
    """Processor seconds up to `until`, in all and by kind of process: the cost of a start, independent of
    other work on the machine."""
    before = [look.processor for look in seen if look.at <= until]
    spent = before[-1] if before else {}
    named = {kind: round(s, 1) for kind, s in sorted(spent.items(), key=lambda i: -i[1]) if s >= _SHOWN}
    return {"all": round(sum(spent.values()), 1), **named}


def _core_ms(seen: Sequence[Look], results: Sequence[Moment], pace: Pace) -> dict[str, float] | None:
    """Processor milliseconds per mention, in all and by kind of process; None without two looks while the
    pace was steady."""
    within = [look for look in seen if pace.began <= look.at <= pace.ended]
    if len(within) < 2:
        return None
    first, last = within[0], within[-1]
    mentions = sum(n for at, n in results if first.at < at <= last.at)
    spent = {
        kind: 1000 * max(0.0, seconds - first.processor.get(kind, 0.0)) / max(1, mentions)
        for kind, seconds in last.processor.items()
    }
    named = {kind: round(ms, 3) for kind, ms in sorted(spent.items(), key=lambda i: -i[1]) if ms >= 0.01}
    return {"all": round(sum(spent.values()), 3), **named}
