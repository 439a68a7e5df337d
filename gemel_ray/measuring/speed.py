"""The speed of linking: the engine alone, every stage alone, the whole job; and the bottleneck.

Measured on at least a thousand mentions, hundreds of them in progress, without start and end. The reference
loop and the raw rate are measured in turn with the engine, on the same prompts.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

from gemel_ray.checked import Values
from gemel_ray.config import Config
from gemel_ray.job.record import Manifest
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.measuring.alone import FRONT, StageFigures, alone
from gemel_ray.measuring.engine import Say, Sizes, engines
from gemel_ray.measuring.job import JobFigures, timed
from gemel_ray.measuring.machine import Figures, Machine, Spread, machine
from gemel_ray.measuring.pictures import encoding
from gemel_ray.measuring.scale import write_mentions
from gemel_ray.sizing import engines_on_a_gpu, fitted


class EngineSpeed(TypedDict):
    """What `bench engine --json` prints."""

    machine: Machine
    what: Figures
    rounds: dict[str, Spread]
    ratios: dict[str, float]


class Speed(EngineSpeed):
    """What `bench speed --json` prints, and `plan --rates` reads. `segments`: as in offline.segments."""

    segments: list[Values]
    alone: dict[str, StageFigures]
    encode: Figures
    job: JobFigures
    tokens: dict[str, int]
    bottleneck: str


def speed(
    config: Config, workspace: Path, inputs: Sequence[str], output: Path, mentions: int | None, repeats: int,
    say: Say,
) -> Speed:  # fmt: skip
    """All figures, of this number of mentions, by default as many as keep the engine full."""
    config, linked = fitted(config, "offline"), output / "linked"
    opened = Workspace.open(workspace, config)
    found = _of_engines(config, opened, inputs, output, mentions, repeats, say)
    rounds, file = found["rounds"], _mentions(output)
    shutil.rmtree(linked, ignore_errors=True)  # the job is measured, not its resuming
    say("every stage before the engine alone")
    stages = alone(config, workspace, [str(file)], _processes(config))
    encoded = encoding(config.encode, opened, inputs)
    say("the offline job on Ray")
    figures, manifest = timed(config, workspace, [str(file)], linked)
    return {
        **found,
        "segments": [asdict(segment) for segment in config.offline.segments],
        "alone": stages,
        "encode": encoded,
        "job": figures,
        "tokens": _tokens(manifest),
        "ratios": found["ratios"] | _ratios_of_job(rounds, figures["mentions_per_second"]),
        "bottleneck": bottleneck(rounds, stages),
    }


def engine_speed(
    config: Config, workspace: Path, inputs: Sequence[str], output: Path, mentions: int | None, repeats: int,
    say: Say,
) -> EngineSpeed:  # fmt: skip
    """The figures of the engine alone; of all engines of a GPU, at the same time, if it has several."""
    config = fitted(config, "offline")
    opened = Workspace.open(workspace, config)
    return _of_engines(config, opened, inputs, output, mentions, repeats, say)


def _of_engines(
    config: Config, opened: Workspace, inputs: Sequence[str], output: Path, mentions: int | None,
    repeats: int, say: Say,
) -> EngineSpeed:  # fmt: skip
    """`engine_speed` with a configuration that is fitted to this machine."""
    sizes = Sizes.filling(config.generate.columns, mentions, repeats)
    number, file = engines_on_a_gpu(config, "offline"), _mentions(output)
    write_mentions(inputs, sizes.mentions, file)
    what = {
        "models": opened.facts["models"],
        "names": len(opened.tree),
        "demonstrations": config.retrieve.demonstrations,
        "sets": config.retrieve.shared_sets,
        "own": config.retrieve.nearest,
        "beams": config.generate.beams,
        "engines": number,
        "sizes": vars(sizes),
    }
    rounds = engines(config, opened.folder, [str(file)], sizes, number, say)
    return {"machine": machine(), "what": what, "rounds": rounds, "ratios": _ratios(rounds)}


def _mentions(output: Path) -> Path:
    """The file of the mentions that are linked."""
    return output / "mentions.parquet"


def _processes(config: Config) -> int:
    """The number of processes of the stages before the engine."""
    return max(s.workers for s in config.offline.segments if "retrieve" in s.stages)


def _tokens(manifest: Manifest) -> dict[str, int]:
    """The tokens of the job's engine."""
    usage = manifest["measures"]["generate"]
    return {
        "asked": usage["asked"],
        "cached": usage["cached"],
        "computed": usage["asked"] - usage["cached"],
        "decoded": usage["decoded"],
    }


def _ratios(rounds: Mapping[str, Spread]) -> dict[str, float]:
    """Ratios of rates. Those to rates that were not measured are left out."""
    figures = {name: f["median"] for name, f in rounds.items()}
    rate = figures["mentions_per_second"]
    against = {
        "engine_over_reference": (rate, figures.get("reference_mentions_per_second")),
        "computed_rate_over_raw": (
            figures["computed_tokens_per_second"],
            figures.get("raw_tokens_per_second"),
        ),
        "beams_over_greedy_cost": (figures["greedy_mentions_per_second"], rate),
    }
    return {name: one / other for name, (one, other) in against.items() if other}


def _ratios_of_job(rounds: Mapping[str, Spread], rate: float | None) -> dict[str, float]:
    """Ratios of the rate of the job, if measured, to those of the engine alone and of the reference loop."""
    others = {
        "job_over_reference": rounds.get("reference_mentions_per_second"),
        "job_over_engine": rounds["mentions_per_second"],
    }
    return {name: rate / other["median"] for name, other in others.items() if other and rate}


def bottleneck(rounds: Mapping[str, Spread], stages: Mapping[str, StageFigures]) -> str:
    """One line: which stage is slowest with all processes that it may have; and whether the GPU limits the
    engine, or its host."""
    figures = {name: f["median"] for name, f in rounds.items()}
    rates = {name: stages[name]["per_second"] for name in FRONT}
    rates["generate"] = figures["mentions_per_second"]
    slowest = min(rates, key=lambda name: rates[name])
    others = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items() if name != slowest)
    text = f"{slowest}: {rates[slowest]:,.4g} per second (alone: {others})"
    if slowest == "generate" and "kernel_ms_per_mention" in figures:
        kernels, whole = figures["kernel_ms_per_mention"], 1000 / rates["generate"]
        limit = "GPU" if kernels > 0.7 * whole else "host"
        text += f"; the GPU computes {kernels:.3g} of {whole:.3g} ms per mention: the {limit} is the limit"
    return text
