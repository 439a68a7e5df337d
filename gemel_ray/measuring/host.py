"""What everything but the language model costs: to be run after every change, on any machine.

The knowledge of a real workspace with a random model of two layers (random_model.py): the search, the stages
before it, Ray, results. On a machine without a GPU processor time is the whole cost.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemel_ray.config import Config
from gemel_ray.measuring.alone import FRONT, alone
from gemel_ray.measuring.apart import apart
from gemel_ray.measuring.engine import Say, Sizes, engine
from gemel_ray.measuring.job import timed
from gemel_ray.measuring.machine import machine
from gemel_ray.measuring.scale import written

_ROUND = 512  # mentions of the engine alone; the job takes all


def host(
    config: Config, workspace: Path, inputs: Sequence[str], output: Path, sizes: Sizes, say: Say
) -> dict[str, Any]:
    """All figures, ready for JSON. `workspace`: with a random language model."""
    few, all_of, linked = output / "few.parquet", output / "all.parquet", output / "linked"
    written(inputs, min(_ROUND, sizes.mentions), few)
    written(inputs, sizes.mentions, all_of)
    shutil.rmtree(linked, ignore_errors=True)
    rounds = apart(engine, config, workspace, [str(few)], sizes, say)
    say("every stage before the engine alone")
    found = {
        "machine": machine(),
        "engine": rounds,
        "alone": alone(config, workspace, [str(few)], 1),
    }
    say(f"the offline job of {sizes.mentions:,} mentions")
    found["job"], manifest = timed(config, workspace, [str(all_of)], linked)
    found["job"]["errors"] = manifest["errors"]
    return found | {"core_ms_per_mention": _costs(found)}


def _costs(found: dict[str, Any]) -> dict[str, float]:
    """Of each part alone, and of the job with all that is around them."""
    parts = {name: found["alone"][name]["core_ms"] for name in FRONT}
    parts["generate"] = found["engine"]["core_ms_per_mention"]["median"]
    whole = (found["job"]["core_ms_per_mention"] or {}).get("all")
    return parts | ({"job": whole} if whole else {})
