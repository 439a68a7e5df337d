"""The offline job, run and timed from outside: first batch, pace, what a mention costs, memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemel_ray.config import Config
from gemel_ray.measuring.machine import Look, looks, peaks
from gemel_ray.measuring.pace import Moment, Pace, steady
from gemel_ray.progress import Progress
from gemel_ray.sizing import fitted

_SHOWN = 0.5  # processor seconds of a kind of process that is named


def timed(
    config: Config, workspace: Path, inputs: Sequence[str], output: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was measured, and the job's manifest. `output` must not hold links yet: the job is measured, not
    its resuming. The pace is None where all batches were under way together."""
    from gemel_ray.offline import link

    config, told = fitted(config, "offline"), list[Moment]()
    began = time.perf_counter()

    def report(progress: Progress) -> None:
        told.append((time.perf_counter(), sum(progress.statuses.values())))

    with looks() as seen:
        manifest = link(config, workspace, inputs, output, report)
    last = config.offline.segments[-1]
    pace = steady(told, last.overlap * last.workers)
    found = {
        "mentions": manifest["rows"],
        "seconds_to_first_batch": round(told[0][0] - began, 2),
        "core_seconds_to_first_batch": _start(seen, told[0][0]),
        "mentions_per_second": round(pace.rate, 3) if pace else None,
        "seconds": manifest["seconds"],
        "core_ms_per_mention": _core_ms(seen, told, pace) if pace else None,
        "peak_mib": peaks(look.resident for look in seen),
        "own_peak_mib": peaks(look.own for look in seen),
    }
    return found, manifest


def _start(seen: Sequence[Look], until: float) -> dict[str, float]:
    """Processor seconds until then, of all and by kind of process: what a start costs, whoever else is at
    work on the machine."""
    before = [look.processor for look in seen if look.at <= until]
    spent = before[-1] if before else {}
    named = {kind: round(s, 1) for kind, s in sorted(spent.items(), key=lambda i: -i[1]) if s >= _SHOWN}
    return {"all": round(sum(spent.values()), 1), **named}


def _core_ms(seen: Sequence[Look], told: Sequence[Moment], pace: Pace) -> dict[str, float] | None:
    """Processor milliseconds a mention, of all and by kind of process, where it was looked at twice while the
    pace was steady."""
    within = [look for look in seen if pace.began <= look.at <= pace.ended]
    if len(within) < 2:
        return None
    first, last = within[0], within[-1]
    mentions = sum(n for at, n in told if first.at < at <= last.at)
    spent = {
        kind: 1000 * max(0.0, seconds - first.processor.get(kind, 0.0)) / max(1, mentions)
        for kind, seconds in last.processor.items()
    }
    named = {kind: round(ms, 3) for kind, ms in sorted(spent.items(), key=lambda i: -i[1]) if ms >= 0.01}
    return {"all": round(sum(spent.values()), 3), **named}
