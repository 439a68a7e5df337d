"""Large knowledge bases: the cost of N more names in building, in memory and in decoding.

`gemel-ray build`'s code builds a workspace of the given workspace's names and N synthetic ones (of its words,
as many as in real names). Then the same mentions are decoded with either tree, each in a separate process,
without demonstrations, so that the prompts are equal.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from gemel_ray.config import Config
from gemel_ray.knowledge.build import build
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.measuring.machine import Figures, looks, machine, peaks
from gemel_ray.measuring.processes import in_new_process
from gemel_ray.sizing import fitted

Say = Callable[[str], None]


class MemoryFigures(TypedDict):
    """The memory of a second process that maps the tree, and the speed of reading names."""

    resident_mib: float
    private_mib: float
    names_walked_per_second: int


class DecodingFigures(TypedDict):
    """The speed of decoding under the tree."""

    milliseconds_per_token: float
    mentions_per_second: float
    decoded_per_mention: float
    requests_per_mention: float


class TreeFigures(TypedDict):
    """One tree."""

    names: int
    tree_mib: float
    bytes_per_name: float
    children_of_the_root: int
    second_process: MemoryFigures
    decoding: DecodingFigures


_SETTINGS = ("retrieve.demonstrations=0", "bank.names=0", "retrieve.shared_sets=0")


def trees(
    configured: Callable[[Sequence[str]], Config],
    workspace: Path,
    inputs: Sequence[str],
    output: Path,
    names: int,
    mentions: int,
    say: Say,
) -> Figures:
    """All figures. The large workspace stays in `output`, and is not built again."""
    config = fitted(configured(_SETTINGS), "offline")
    small = Workspace.open(workspace, config)
    large = output / f"names-{names}"
    if not (large / "workspace.json").exists():
        say(f"writing {names:,} names beside the workspace's {len(small.tree):,}")
        entities = output / f"entities-{names}.jsonl"
        _write(small, names, entities)
        began = time.perf_counter()
        with looks() as seen:
            build(config, str(entities), [], large, say)
        seconds, memory = time.perf_counter() - began, peaks(look.resident for look in seen)
        facts = {"build_seconds": round(seconds, 1), "build_peak_mib": memory}
        (output / f"build-{names}.json").write_text(json.dumps(facts))
        entities.unlink()
    built: Figures = json.loads((output / f"build-{names}.json").read_text())
    figures: dict[str, TreeFigures] = {}
    for name, opened in (("small", small), ("large", Workspace.open(large, config))):
        say(f"decoding {mentions} mentions under the {name} tree")
        size, count = sum(f.stat().st_size for f in opened.tree_folder.iterdir()), len(opened.tree)
        figures[name] = {
            "names": count,
            "tree_mib": round(size / 2**20, 1),
            "bytes_per_name": round(size / count, 1),
            "children_of_the_root": len(opened.tree.children(opened.tree.root)[1]),
            "second_process": in_new_process(mapped, opened.folder, config, inputs, mentions),
            "decoding": in_new_process(decoded, opened.folder, config, inputs, mentions),
        }
    # Per token, not per mention: among more names, more tokens are needed to distinguish them.
    times = {name: tree["decoding"]["milliseconds_per_token"] for name, tree in figures.items()}
    slowdown = round(times["large"] / times["small"] - 1, 4)
    return {"machine": machine(), "names": names, **built, **figures, "slowdown_of_a_token": slowdown}


def _write(workspace: Workspace, names: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for identity, name in workspace.entities.of(range(len(workspace.entities))):
            file.write(json.dumps({"id": identity, "name": name}) + "\n")
        for number, name in enumerate(made_up(workspace, names)):
            file.write(json.dumps({"id": f"made-up-{number}", "name": name}) + "\n")


def made_up(workspace: Workspace, names: int) -> Iterator[str]:
    """Synthetic names: words of real names, mixed, as many as in a real name."""
    real = [name.split() for _, name in workspace.entities.of(range(len(workspace.entities)))]
    words = [word for name in real for word in name]
    lengths = [len(name) for name in real]
    dice = random.Random(0)
    for _ in range(names):
        yield " ".join(dice.choices(words, k=dice.choice(lengths) + 1))


def mapped(folder: Path, config: Config, inputs: Sequence[str], mentions: int) -> MemoryFigures:
    """The memory of a process that maps the tree and reads 10,000 names of it; resident pages are shared by
    all processes that map it, private ones are not."""
    import psutil

    from gemel_ray.knowledge.prefix_tree import PrefixTree

    here, tree_folder = psutil.Process(), Workspace.open(folder, config).tree_folder
    before = here.memory_full_info()
    tree = PrefixTree.open(tree_folder)
    dice = np.random.default_rng(0)
    began = time.perf_counter()
    for leaf in dice.choice(np.asarray(tree.leaf), 10_000):
        assert tree.walk(tree.path(int(leaf))) == leaf
    seconds, after = time.perf_counter() - began, here.memory_full_info()
    return {
        "resident_mib": round((after.rss - before.rss) / 2**20, 1),
        "private_mib": round((after.uss - before.uss) / 2**20, 1),
        "names_walked_per_second": round(10_000 / seconds),
    }


def decoded(folder: Path, config: Config, inputs: Sequence[str], mentions: int) -> DecodingFigures:
    """Run Generate on the same mentions four times. The first run warms up, and fills the cache."""
    import statistics

    from gemel_ray.linking import linking_graph
    from gemel_ray.readers import documents

    workspace = Workspace.open(folder, config)
    graph = linking_graph(config, workspace)
    front = graph.segment(graph.names[:-1], workspace)
    table = asyncio.run(front.run(next(iter(documents(inputs[0], batch=mentions)))))
    work: Any = config.generate.start(workspace, graph.stages)
    segment = graph.segment(["generate"], workspace, {"generate": work})
    tokens, rates = [], []
    for number in range(4):
        moments = asyncio.run(_watched(segment, table, work))
        if number:
            tokens.append(_steady(moments))
            rates.append(len(table) / (moments[-1][0] - moments[0][0]))
    usage = work.usage
    work.close()
    return {
        "milliseconds_per_token": round(statistics.median(tokens), 3),
        "mentions_per_second": round(statistics.median(rates), 2),
        "decoded_per_mention": round(usage.decoded / work.mentions, 2),
        "requests_per_mention": round(usage.requests / work.mentions, 2),
    }


async def _watched(segment: Any, table: Any, work: Any) -> list[tuple[float, int]]:
    """Moments of a run: seconds, and the tokens decoded until then."""
    run, moments = asyncio.ensure_future(segment.run(table)), []
    while not run.done():
        moments.append((time.perf_counter(), work.usage.decoded))
        await asyncio.wait([run], timeout=0.05)
    await run
    return [*moments, (time.perf_counter(), work.usage.decoded)]


def _steady(moments: Sequence[tuple[float, int]]) -> float:
    """Milliseconds per token at full load: from a quarter to three quarters of the tokens. Before and after
    that a step has fewer rows, and there are more such steps the more names there are."""
    first, last = moments[0][1], moments[-1][1]
    at = [next(m for m in moments if m[1] - first >= share * (last - first)) for share in (0.25, 0.75)]
    (began, before), (ended, then) = at
    return 1000 * (ended - began) / (then - before)
