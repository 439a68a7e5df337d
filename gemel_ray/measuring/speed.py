"""How fast links are made: the engine alone, every stage alone, the whole job; and what holds them up.

At least a thousand mentions, hundreds of them under way, and figures of the time in between, when the line is
full. The reference loop and the raw rate are taken in turn with the engine, on the same prompts.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemel_ray.config import Config
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.measuring.alone import FRONT, alone
from gemel_ray.measuring.apart import apart
from gemel_ray.measuring.engine import Say, Sizes, engine
from gemel_ray.measuring.job import timed
from gemel_ray.measuring.machine import machine
from gemel_ray.measuring.pictures import encoding
from gemel_ray.measuring.scale import written
from gemel_ray.sizing import fitted


def speed(
    config: Config, workspace: Path, inputs: Sequence[str], output: Path, sizes: Sizes, say: Say
) -> dict[str, Any]:
    """All figures, ready for JSON."""
    config = fitted(config, "offline")
    opened = Workspace.open(workspace, config)
    file, linked = output / f"mentions-{sizes.mentions}.parquet", output / "linked"
    written(inputs, sizes.mentions, file)
    shutil.rmtree(linked, ignore_errors=True)  # the job is measured, not its resuming
    found: dict[str, Any] = {
        "machine": machine(),
        "what": {
            "models": opened.facts["models"],
            "names": len(opened.tree),
            "demonstrations": config.retrieve.demonstrations,
            "sets": config.retrieve.shared_sets,
            "own": config.retrieve.nearest,
            "beams": config.generate.beams,
            "sizes": vars(sizes),
        },
        "rounds": apart(engine, config, workspace, [str(file)], sizes, say),
    }
    say("every stage before the engine alone")
    found["alone"] = alone(config, workspace, [str(file)], _processes(config))
    found["encode"] = encoding(config.encode, opened, inputs)
    say("the offline job on Ray")
    found["job"] = job(config, workspace, [str(file)], linked)
    found["ratios"] = _ratios(found)
    return found | {"bottleneck": bottleneck(found)}


def _processes(config: Config) -> int:
    """Of the stages before the engine."""
    return max(s.workers for s in config.offline.segments if "retrieve" in s.stages)


def job(config: Config, workspace: Path, inputs: Sequence[str], output: Path) -> dict[str, Any]:
    """The offline job, with the tokens of its engine."""
    found, manifest = timed(config, workspace, inputs, output)
    usage = manifest["measures"]["generate"]
    return found | {
        "tokens_asked": usage["asked"],
        "tokens_cached": usage["cached"],
        "tokens_computed": usage["asked"] - usage["cached"],
        "tokens_decoded": usage["decoded"],
    }


def _ratios(found: dict[str, Any]) -> dict[str, Any]:
    """What the figures are held against. Those without their counterpart are left out."""
    figures = {name: f["median"] for name, f in found["rounds"].items()}
    rate, worked = figures["mentions_per_second"], (found["job"]["mentions_per_second"] or 0)
    against = {
        "engine_over_reference": (rate, figures.get("reference_mentions_per_second")),
        "job_over_reference": (worked, figures.get("reference_mentions_per_second")),
        "computed_rate_over_raw": (
            figures["computed_tokens_per_second"],
            figures.get("raw_tokens_per_second"),
        ),
        "beams_over_greedy_cost": (figures["greedy_mentions_per_second"], rate),
        "job_over_engine": (worked, rate),
    }
    return {name: one / other for name, (one, other) in against.items() if other}


def bottleneck(found: dict[str, Any]) -> str:
    """In one line: what is slowest, each with all that it may have; and whether a GPU holds it up, or its
    host."""
    figures = {name: f["median"] for name, f in found["rounds"].items()}
    rates = {name: found["alone"][name]["per_second"] for name in FRONT}
    rates["generate"] = figures["mentions_per_second"]
    slowest = min(rates, key=lambda name: rates[name])
    others = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items() if name != slowest)
    told = f"{slowest}: {rates[slowest]:,.4g} a second (alone: {others})"
    if slowest == "generate" and "kernel_ms_per_mention" in figures:
        kernels, whole = figures["kernel_ms_per_mention"], 1000 / rates["generate"]
        told += f"; its GPU computes {kernels:.3g} of {whole:.3g} ms a mention: "
        told += "the GPU holds it up" if kernels > 0.7 * whole else "the host holds it up"
    return told
