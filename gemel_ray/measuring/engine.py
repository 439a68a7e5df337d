"""The engine alone, on assembled prompts: links per second at full load, and the cost of a link.

In a separate process (processes.py), so that the GPU is free afterwards for the job; with several engines on
a GPU in as many, all at the same time. Measured in turn with greedy search, and with the raw rate of prompts
that are not in the cache; then, on the same prompts, the reference loop, in a process of its own: a GPU has
no room for both models.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from gemel_ray.config import Config
from gemel_ray.engine.work import Prompt, RolloutOptions, Usage
from gemel_ray.errors import Mistake
from gemel_ray.graph import run_in_process
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.measuring.alone import assembled
from gemel_ray.measuring.machine import Spread, spread
from gemel_ray.measuring.pace import Moment, steady
from gemel_ray.measuring.processes import in_new_process, in_new_processes, wait_for_all
from gemel_ray.measuring.reference import rates
from gemel_ray.stages.answering import asks_model

Say = Callable[[str], None]
_BATCH = 64
_WARM = 64  # mentions before the measurement begins


@dataclass(frozen=True)
class Sizes:
    """The size of the measurement: mentions in all, and in progress at once; rounds; and of each round the
    mentions that the reference loop and the raw rate use (0: none)."""

    mentions: int = 1024
    under_way: int = 256
    rounds: int = 1
    reference: int = 8
    raw: int = 24

    @classmethod
    def filling(cls, columns: int, mentions: int | None, rounds: int) -> Sizes:
        """Twice as many mentions in progress as an engine of these columns searches at once; by default four
        times as many in all."""
        under_way = max(cls.under_way, 2 * columns)
        return cls(mentions or 4 * under_way, under_way, rounds)


def engines(
    config: Config, folder: Path, inputs: Sequence[str], sizes: Sizes, number: int, say: Say
) -> dict[str, Spread]:
    """The figures of this number of engines at the same time, all on these mentions. Raises Mistake if the
    settings ask no language model."""
    measured = in_new_processes(number, engine, config, folder, inputs, sizes, say)
    rounds = [together(figures) for figures in zip(*(figures for figures, _ in measured), strict=True)]
    if sizes.reference:
        say(f"the reference loop, on {sizes.reference} mentions")
        (prompts,) = (prompts for _, prompts in measured if prompts)
        loop = in_new_process(rates, config, folder, prompts, sizes.rounds)
        for figures, rate in zip(rounds, loop, strict=True):
            figures["reference_mentions_per_second"] = rate
    return {name: spread([figures[name] for figures in rounds]) for name in rounds[0]}


def together(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """The figures of a round of several engines: rates are sums, costs means. One engine has those that only
    one measures."""
    found = dict[str, list[float]]()
    for one in figures:
        for name, value in one.items():
            found.setdefault(name, []).append(value)
    return {
        name: sum(values) / (1 if name.endswith("_per_second") else len(values))
        for name, values in found.items()
    }


def engine(
    config: Config, folder: Path, inputs: Sequence[str], sizes: Sizes, say: Say
) -> tuple[list[dict[str, float]], list[Prompt]]:
    """The figures of the rounds of one of the engines; and of one engine, prompts for the reference loop.
    Raises Mistake if the settings ask no language model."""
    workspace = Workspace.open(folder, config)
    if not asks_model(config.generate, config.retrieve, workspace):
        raise Mistake(
            "bench measures the language model, which these settings do not ask: set generate.ranking and "
            "generate.neighbour_weight below 1"
        )
    say(f"assembling the prompts of {sizes.mentions:,} mentions")
    mentions = assembled(config, workspace, inputs).slice(0, sizes.mentions)
    say("starting the language model in a separate process")
    began = time.perf_counter()
    generating = config.generate.start(workspace, config.line.stages)
    started = {"seconds_to_start": time.perf_counter() - began}
    try:
        measuring = Measuring(config, workspace, generating, mentions, sizes, alone=wait_for_all())
        rounds = [figures | started for figures in measuring.rounds(say)]
        return rounds, measuring.prompts(sizes.reference) if measuring.alone else []
    finally:
        generating.close()


class Measuring:
    """One engine, in a started Generate. `alone`: it measures what one of several engines measures while the
    others wait."""

    def __init__(
        self,
        config: Config,
        workspace: Workspace,
        generating: Any,
        mentions: pa.Table,
        sizes: Sizes,
        *,
        alone: bool,
    ) -> None:
        self.alone = alone
        self.sizes, self.generating, self.mentions = sizes, generating, mentions
        self.segment = linking_graph(config, workspace).segment(
            ["generate"], workspace, {"generate": generating}
        )

    def rounds(self, say: Say) -> list[dict[str, float]]:
        """The figures of the rounds, on a GPU with the milliseconds of its kernels."""
        self._generated(self.mentions.slice(0, _WARM))
        taken = []
        for number in range(self.sizes.rounds):
            say(f"round {number + 1} of {self.sizes.rounds}")
            taken.append(self._round())
        return taken

    def _round(self) -> dict[str, float]:
        """The figures of a round. Several engines begin together."""
        wait_for_all()
        figures = self._generated(self.mentions)
        wait_for_all()
        greedy = self._generated(_greedy(self.mentions))
        figures |= {f"greedy_{name}": greedy[name] for name in ("mentions_per_second", "core_ms_per_mention")}
        wait_for_all()
        if self.sizes.raw:
            figures["raw_tokens_per_second"] = self._raw(self.prompts(self.sizes.raw))
        wait_for_all()
        if self.alone and torch.cuda.is_available():
            figures["kernel_ms_per_mention"] = self._kernels()
        wait_for_all()
        return figures

    def prompts(self, count: int) -> list[Prompt]:
        """The prompts of the first mentions, as the engine takes them."""
        some = self.mentions.slice(0, count)
        pairs = zip(some["prompt"].to_pylist(), some["image_vector"].to_pylist(), strict=True)
        return [
            self.generating.prompts(p, None if v is None else np.asarray(v, np.float32))
            for p, v in pairs
            if p is not None
        ]

    def _generated(self, mentions: pa.Table) -> dict[str, float]:
        """The figures of Generate alone, with batches as in a worker, after its caches are emptied."""
        work = self.generating
        work.usage = work.rollouts.usage = Usage()
        before = work.engine.measures()
        work.engine.forget()
        batches = [mentions.slice(i, _BATCH) for i in range(0, len(mentions), _BATCH)]
        together = max(1, self.sizes.under_way // _BATCH)
        results: list[Moment] = []
        began, worked = time.perf_counter(), time.process_time()
        for done in run_in_process(self.segment, iter(batches), together):
            results.append((time.perf_counter(), len(done)))
        seconds, worked = time.perf_counter() - began, time.process_time() - worked
        # Of fewer batches, the window between start and end is too short for a rate.
        pace = steady(results, together) if len(batches) >= 4 * together else None
        use, count, after = work.usage, len(mentions), work.engine.measures()
        return {
            "mentions_per_second": pace.rate if pace else count / seconds,
            "core_ms_per_mention": 1000 * worked / count,
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
        """Prompt tokens per second of the engine alone, for prompts of which nothing is in the cache."""
        engine, usage = self.generating.engine, Usage()
        asked = RolloutOptions(tree=self.generating.tree_folder, node=0, limit=1, wide=1)
        uncached = [
            Prompt(p.embeddings, p.identity + (i + 1) * 1_000_000, p.base) for i, p in enumerate(prompts)
        ]
        engine.forget()

        async def run() -> None:
            await asyncio.gather(*(engine.rollout(p, asked, usage) for p in uncached))

        began = time.perf_counter()
        asyncio.run(run())
        return (usage.asked - usage.cached) / (time.perf_counter() - began)

    def _kernels(self) -> float:
        """Milliseconds of a GPU's kernels per mention, at full load."""
        from torch.profiler import ProfilerActivity, profile

        some = self.mentions.slice(0, 2 * self.sizes.under_way)
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            self._generated(some)
        return float(sum(e.self_device_time_total for e in profiled.key_averages())) / 1000 / len(some)


def _greedy(mentions: pa.Table) -> pa.Table:
    """The same mentions, whose documents ask for one candidate."""
    field = mentions.schema.field("options")
    one = pa.array([{"candidates": 1}] * len(mentions), field.type)
    return mentions.set_column(mentions.column_names.index("options"), field, one)
