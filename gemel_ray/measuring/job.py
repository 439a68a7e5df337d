"""The offline job, run and timed from outside: when its first batch was there, its pace, its memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemel_ray.config import Config
from gemel_ray.measuring.machine import peaks
from gemel_ray.progress import Progress


def timed(
    config: Config, workspace: Path, inputs: Sequence[str], output: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was measured, and the job's manifest. `output` must not hold links yet: the job is measured, not
    its resuming. The pace is None where all batches were under way together."""
    from gemel_ray.offline import link

    told: list[tuple[float, int]] = []
    began = time.perf_counter()

    def report(progress: Progress) -> None:
        told.append((time.perf_counter() - began, sum(progress.statuses.values())))

    with peaks() as memory, peaks(own=True) as own:
        manifest = link(config, workspace, inputs, output, report)
    # The first batches come together, being under way together: the pace is that of those behind them.
    together = max(s.overlap for s in config.offline.segments)
    pace, begin = told[together:], told[min(together, len(told)) - 1][0]
    found = {
        "mentions": manifest["rows"],
        "seconds_to_first_batch": round(told[0][0], 2),
        "mentions_per_second": round(sum(n for _, n in pace) / (told[-1][0] - begin), 3) if pace else None,
        "seconds": manifest["seconds"],
        "peak_mib": dict(memory),
        "own_peak_mib": dict(own),  # without the object store's pages, which every process maps
    }
    return found, manifest
