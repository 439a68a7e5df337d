"""A study's jobs, one after the other, and what they found."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gemel_ray import storage
from gemel_ray.config import Config
from gemel_ray.evaluation import Evaluation, compare, evaluate, known
from gemel_ray.knowledge import versions
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.offline import link
from gemel_ray.progress import Meter
from gemel_ray.study import variants
from gemel_ray.study.cells import BASE, GROUPS, Cell

Say = Callable[[str], None]
Configured = Callable[[Mapping[str, Any], Sequence[str]], Config]  # a workspace's settings, --set options


@dataclass(frozen=True)
class Study:
    """Where and on what. `train` tells which targets were never seen, and trains mappers of other prefix
    lengths, chosen by `dev`."""

    workspace: Path
    output: Path
    gold: Sequence[str]
    train: Sequence[str] = ()
    dev: Sequence[str] = ()
    limit: int = 300
    seed: int = 0


def study(of: Study, groups: Sequence[str], configured: Configured, say: Say) -> dict[str, Any]:
    """Do all cells of `groups`; returns, and writes to OUTPUT/study.json after each, one row a cell."""
    rows = variants.sample(of.gold, of.limit, of.seed)
    seen = variants.sees(rows)
    judge = _Judge(of, rows, configured, say)
    base = judge.judged(BASE)
    found: dict[str, Any] = {
        "gold": list(of.gold),
        "documents": len(rows),
        "workspace": str(of.workspace),
        "base": _row("", BASE, base, base),
        "cells": [],
        "left_out": [],
    }
    for group, cell in ((g, c) for g in groups for c in GROUPS[g]):
        why = _impossible(of, cell, seen, judge.evidence)
        if why:
            found["left_out"].append({"group": group, "cell": cell.name, "why": why})
            continue
        say(f"{group}: {cell.name}")
        found["cells"].append(_row(group, cell, judge.judged(cell), base))
        _write(of.output / "study.json", found)
    _write(of.output / "study.json", found)
    return found


def _impossible(of: Study, cell: Cell, seen: bool, evidence: Collection[str]) -> str | None:
    if cell.without and cell.without not in evidence:
        return "the workspace has no ranker that sees this"
    if cell.sees and not seen:
        return "the documents have no pictures"
    if cell.prefix and not (of.train and of.dev):
        return "a mapper of this length has to be trained: give --train and --dev"
    return None


class _Judge:
    """Links each way once, and evaluates it."""

    def __init__(self, of: Study, rows: list[variants.Row], configured: Configured, say: Say) -> None:
        self.of, self.rows, self.configured, self.say = of, rows, configured, say
        self.known = known(of.train)
        self.evidence = _evidence(of.workspace)

    def judged(self, cell: Cell) -> Evaluation:
        file = self.of.output / "inputs" / f"{cell.variant}.parquet"
        if not file.exists():
            variants.write(self.rows, cell.variant, file)
        folder = self._workspace(cell)
        config = self.configured(read_facts(folder)["settings"], cell.settings)
        opened = Workspace.open(folder, config)
        opened.ask(self.say)
        without = f"-without-{cell.without.replace(' ', '-')}" if cell.without else ""
        run = f"{config.fingerprint(opened.version)}-{cell.variant}{without}"
        output = self.of.output / "runs" / run
        if not (output / "manifest.json").exists():
            with Meter("documents", len(self.rows)) as meter:
                link(config, folder, [str(file)], output, meter.add)
        return evaluate(output, [str(file)], self.known)

    def _workspace(self, cell: Cell) -> Path:
        """The workspace with a mapper of the cell's prefix length, or a ranker without the evidence that it
        leaves out: a copy that shares all other files."""
        if not cell.prefix and not cell.without:
            return self.of.workspace
        name = f"prefix-{cell.prefix}" if cell.prefix else f"without-{cell.without.replace(' ', '-')}"
        folder = self.of.output / "workspaces" / name
        if folder.exists():
            return folder
        if cell.without:
            return self._refitted(folder, cell.without)
        from gemel_ray.training import train

        leave = shutil.ignore_patterns("mapper.safetensors", "training", "cache")
        with storage.new_folder(folder) as aside:
            shutil.copytree(self.of.workspace, aside, copy_function=_shared, ignore=leave, dirs_exist_ok=True)
            config = self.configured(read_facts(aside)["settings"], [f"train.prefix={cell.prefix}"])
            train(config, self.of.train, self.of.dev, aside, self.say)
        return folder

    def _refitted(self, folder: Path, without: str) -> Path:
        from gemel_ray.ranking.making import refit

        with storage.new_folder(folder) as aside:
            leave = shutil.ignore_patterns("training", "cache")
            shutil.copytree(self.of.workspace, aside, copy_function=_shared, ignore=leave, dirs_exist_ok=True)
            config = self.configured(read_facts(aside)["settings"], ())
            self.say(refit(Workspace.open(aside, config), config, [without]))
        return folder


def _evidence(workspace: Path) -> list[str]:
    """What the workspace's ranker sees; nothing where there is none."""
    from gemel_ray.ranking.features import of_features
    from gemel_ray.ranking.ranker import Ranker
    from gemel_ray.ranking.ranking import FILE

    file = versions.folder(workspace, versions.current(workspace)) / "ranking" / FILE
    return [group.name for group in of_features(Ranker.load(file).features)] if file.exists() else []


def _shared(source: str, target: str) -> None:
    """A hard link; but in its vectors Qdrant writes, of every version: they are copied."""
    (shutil.copy2 if "vectors" in Path(source).parts else os.link)(source, target)


def _row(group: str, cell: Cell, found: Evaluation, base: Evaluation) -> dict[str, Any]:
    """What the table, the plots and the JSON say of a cell."""
    figures, manifest = found.figures(), json.loads((_output(found) / "manifest.json").read_text())
    usage = manifest["measures"].get("generate", {})
    mentions = max(1, usage.get("mentions", 0))
    against = compare(_aligned(found, base), base).figures()
    return {
        "group": group,
        "cell": cell.name,
        "settings": list(cell.settings),
        "variant": cell.variant,
        "run": _output(found).name,
        "mentions": figures["mentions"],
        "accuracy": figures["headline"]["accuracy"],
        "among_candidates": figures["headline"]["among_candidates"],
        "difference": against["difference"],
        "mcnemar_p": against["mcnemar_p"],
        "targets": figures["breakdowns"].get("seen"),
        "seconds": manifest["seconds"],
        "computed": round((usage.get("asked", 0) - usage.get("cached", 0)) / mentions, 1),
        "requests": round(usage.get("requests", 0) / mentions, 2),
    }


def _aligned(found: Evaluation, base: Evaluation) -> Evaluation:
    """`found` with the mentions of `base`: the same in the same order, whose words and places a variant may
    have changed."""
    pairs = zip(found.judged, base.judged, strict=True)
    return replace(found, judged=[replace(ours, gold=theirs.gold) for ours, theirs in pairs])


def _output(found: Evaluation) -> Path:
    assert isinstance(found.output, Path)
    return found.output


def _write(path: Path, found: dict[str, Any]) -> None:
    storage.write(path, json.dumps(found, indent=2))
