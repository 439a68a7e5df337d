"""The cost of everything except the language model: to be measured after every change, on any machine.

The knowledge of a real workspace with a random model of two layers (random_model.py): the search, the stages
before it, Ray, results. On a machine without a GPU processor time is the whole cost.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from gemel_ray.config import Config
from gemel_ray.measuring.alone import FRONT, StageFigures, alone
from gemel_ray.measuring.engine import Say, Sizes, engines
from gemel_ray.measuring.job import JobFigures, timed
from gemel_ray.measuring.machine import Figures, Spread, machine
from gemel_ray.measuring.scale import write_mentions

_ROUND = 512  # mentions of the engine alone; the job takes all


def host(
    config: Config, workspace: Path, inputs: Sequence[str], output: Path, sizes: Sizes, say: Say
) -> Figures:
    """All figures. `workspace`: with a random language model."""
    few, whole, linked = output / "few.parquet", output / "all.parquet", output / "linked"
    write_mentions(inputs, min(_ROUND, sizes.mentions), few)
    write_mentions(inputs, sizes.mentions, whole)
    shutil.rmtree(linked, ignore_errors=True)
    rounds = engines(config, workspace, [str(few)], sizes, 1, say)
    say("every stage before the engine alone")
    stages = alone(config, workspace, [str(few)], 1)
    say(f"the offline job of {sizes.mentions:,} mentions")
    job, manifest = timed(config, workspace, [str(whole)], linked)
    return {
        "machine": machine(),
        "engine": rounds,
        "alone": stages,
        "job": {**job, "errors": manifest["errors"]},
        "core_ms_per_mention": _costs(rounds, stages, job),
    }


def _costs(
    rounds: Mapping[str, Spread], stages: Mapping[str, StageFigures], job: JobFigures
) -> dict[str, float]:
    """The processor time per mention of each part alone, and of the whole job."""
    parts = {name: stages[name]["core_ms"] for name in FRONT}
    parts["generate"] = rounds["core_ms_per_mention"]["median"]
    whole = (job["core_ms_per_mention"] or {}).get("all")
    return parts | ({"job": whole} if whole else {})
