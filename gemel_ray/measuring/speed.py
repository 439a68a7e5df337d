"""How fast links are made, against the reference loop and the engine's own rate, stage by stage.

In rounds, one after another on the same mentions: the graph as a worker runs it, the same greedily, the
engine's raw prompt rate, the reference loop. Then the offline job on Ray: start-up, pace, memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gemel_ray.config import Config
from gemel_ray.engine.prompts import Prompt
from gemel_ray.engine.run import Usage
from gemel_ray.engine.vllm_engine import Asked
from gemel_ray.graph import Graph, Segment
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.measuring.job import timed
from gemel_ray.measuring.machine import machine, middle
from gemel_ray.measuring.reference import Reference
from gemel_ray.measuring.stages import encoding

Say = Callable[[str], None]
_FRONT = ("detect", "encode", "retrieve", "assemble")


@dataclass(frozen=True)
class Rounds:
    """How much is measured: rounds, documents of a round, and of those the ones that the reference loop
    and the raw rate take."""

    number: int = 3
    documents: int = 64
    reference: int = 4
    raw: int = 24


def speed(
    config: Config,
    workspace: Path,
    inputs: Sequence[str],
    output: Path,
    table: pa.Table,
    rounds: Rounds,
    say: Say,
) -> dict[str, Any]:
    """All figures, ready for JSON. `table` are the documents of `inputs`."""
    opened = Workspace.open(workspace, config)
    found: dict[str, Any] = {
        "machine": machine(),
        "what": {
            "models": opened.facts["models"],
            "names": len(opened.tree),
            "demonstrations": config.retrieve.demonstrations,
            "sets": config.retrieve.sets,
            "own": config.retrieve.own,
            "beams": config.generate.beams,
            "documents": len(table),
            "rounds": vars(rounds),
        },
    }
    say("starting the models in this process")
    measuring = Measuring(config, opened, config.generate.start(opened), table, rounds)
    try:
        found |= measuring.rounds(say)
    finally:
        measuring.close()
    found["encode"] = encoding(config.encode, opened, table)
    say("running the offline job on Ray")
    found["job"] = _job(config, workspace, inputs, output)
    return found | {"ratios": _ratios(found)}


class Measuring:
    """One engine, in the started Generate, and one reference model, on the same prompts."""

    def __init__(
        self, config: Config, workspace: Workspace, generating: Any, table: pa.Table, rounds: Rounds
    ) -> None:
        self.config, self.sizes, self.table = config, rounds, table
        self.graph: Graph = linking_graph(config, workspace)
        self.front = self.graph.segment(_FRONT, workspace)
        self.generating = generating
        self.reference = Reference(
            workspace.language_model, config.generate.dtype, workspace.tree, config.generate.beams
        )

    def rounds(self, say: Say) -> dict[str, Any]:
        """Medians over the rounds. The first one warms up and is not counted."""
        taken: list[dict[str, float]] = []
        for number in range(self.sizes.number + 1):
            say(f"round {number} of {self.sizes.number}" + ("" if number else ", to warm up"))
            start = number * self.sizes.documents % max(1, len(self.table) - self.sizes.documents + 1)
            figures = self._round(self.table.slice(start, self.sizes.documents))
            taken += [figures] if number else []
        return {"rounds": {name: middle([t[name] for t in taken]) for name in taken[0]}}

    def _round(self, documents: pa.Table) -> dict[str, float]:
        self.front.seconds.clear()
        mentions = asyncio.run(self.front.run(documents))
        figures = {
            f"{name}_mentions_per_second": len(mentions) / max(seconds, 1e-9)
            for name, seconds in self.front.seconds.items()
        }
        beams = self._generated(mentions, self.config.generate.beams)
        greedy = self._generated(mentions, 1)
        figures |= beams | {"greedy_mentions_per_second": greedy["mentions_per_second"]}
        alone = sum(self.front.seconds.values())
        figures["graph_mentions_per_second"] = len(mentions) / (
            alone + len(mentions) / beams["mentions_per_second"]
        )
        prompts = [
            self.generating.prompts(p, None if v is None else np.asarray(v, np.float32))
            for p, v in zip(mentions["prompt"].to_pylist(), mentions["image_vector"].to_pylist(), strict=True)
            if p is not None
        ]
        figures["raw_tokens_per_second"] = self._raw(prompts[: self.sizes.raw])
        figures["reference_mentions_per_second"] = self.reference.mentions_a_second(
            prompts[: self.sizes.reference]
        )
        return figures

    def _generated(self, mentions: pa.Table, beams: int) -> dict[str, float]:
        """Of Generate alone, in batches as a worker takes them; as if these mentions had never been seen."""
        work = self.generating
        work.stage = replace(self.config.generate, beams=beams, nil_threshold=0.0, prior_weight=0.0)
        work.usage, before = Usage(), work.engine.measures()
        work.engine.forget()
        segment = Segment(self.graph, ((len(_FRONT), work),))

        async def run() -> None:
            await asyncio.gather(*(segment.run(mentions.slice(i, 64)) for i in range(0, len(mentions), 64)))

        began = time.perf_counter()
        asyncio.run(run())
        seconds = time.perf_counter() - began
        use, count, after = work.usage, len(mentions), work.engine.measures()
        return {
            "mentions_per_second": count / seconds,
            "asked_per_mention": use.asked / count,
            "computed_per_mention": (use.asked - use.cached) / count,
            "decoded_per_mention": use.decoded / count,
            "requests_per_mention": use.requests / count,
            "steps_per_second": (after["steps"] - before["steps"]) / seconds,
            "steps_per_mention": (after["steps"] - before["steps"]) / count,
            "hashed_bytes_per_mention": (after["hashed"] - before["hashed"]) / count,
            "computed_tokens_per_second": (use.asked - use.cached + use.decoded) / seconds,
        }

    def _raw(self, prompts: Sequence[Prompt]) -> float:
        """Prompt tokens a second that the engine computes with nothing around it: none is known to it."""
        engine, usage = self.generating.engine, Usage()
        asked = Asked(tree=self.generating.tree_folder, node=0, limit=1, wide=1)
        never = [
            Prompt(p.embeddings, p.identity + (i + 1) * 1_000_000, p.base) for i, p in enumerate(prompts)
        ]
        engine.forget()

        async def run() -> None:
            await asyncio.gather(*(engine.rollout(p, asked, usage) for p in never))

        began = time.perf_counter()
        asyncio.run(run())
        return (usage.asked - usage.cached) / (time.perf_counter() - began)

    def close(self) -> None:
        self.front.close()
        self.generating.close()


def _job(config: Config, workspace: Path, inputs: Sequence[str], output: Path) -> dict[str, Any]:
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
    """What the figures are held against."""
    figures = {name: f["median"] for name, f in found["rounds"].items()}
    seconds = {name: 1 / figures[f"{name}_mentions_per_second"] for name in _FRONT}
    seconds["generate"] = 1 / figures["mentions_per_second"]
    return {
        "graph_over_reference": figures["graph_mentions_per_second"]
        / figures["reference_mentions_per_second"],
        "computed_rate_over_raw": figures["computed_tokens_per_second"] / figures["raw_tokens_per_second"],
        "beams_over_greedy_cost": figures["greedy_mentions_per_second"] / figures["mentions_per_second"],
        "job_over_graph": (found["job"]["mentions_per_second"] or 0) / figures["graph_mentions_per_second"],
        "bottleneck": max(seconds, key=lambda name: seconds[name]),
        "share_of_bottleneck": max(seconds.values()) / sum(seconds.values()),
    }
