"""A study's jobs, one after the other, and what they found."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gemel_ray import storage
from gemel_ray.config import Config
from gemel_ray.evaluation import Evaluation, compare, evaluate, known
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
        why = _impossible(of, cell, seen)
        if why:
            found["left_out"].append({"group": group, "cell": cell.name, "why": why})
            continue
        say(f"{group}: {cell.name}")
        found["cells"].append(_row(group, cell, judge.judged(cell), base))
        _write(of.output / "study.json", found)
    _write(of.output / "study.json", found)
    return found


def _impossible(of: Study, cell: Cell, seen: bool) -> str | None:
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

    def judged(self, cell: Cell) -> Evaluation:
        file = self.of.output / "inputs" / f"{cell.variant}.parquet"
        if not file.exists():
            variants.write(self.rows, cell.variant, file)
        folder = self._workspace(cell.prefix)
        config = self.configured(read_facts(folder)["settings"], cell.settings)
        opened = Workspace.open(folder, config)
        opened.ask(self.say)
        output = self.of.output / "runs" / f"{config.fingerprint(opened.version)}-{cell.variant}"
        if not (output / "manifest.json").exists():
            with Meter("documents", len(self.rows)) as meter:
                link(config, folder, [str(file)], output, meter.add)
        return evaluate(output, [str(file)], self.known)

    def _workspace(self, prefix: int) -> Path:
        """The workspace with a mapper of this prefix length: a copy that shares all other files."""
        if not prefix:
            return self.of.workspace
        folder = self.of.output / "workspaces" / f"prefix-{prefix}"
        if folder.exists():
            return folder
        from gemel_ray.training import train

        leave = shutil.ignore_patterns("mapper.safetensors", "training", "cache")
        with storage.new_folder(folder) as aside:
            shutil.copytree(self.of.workspace, aside, copy_function=_shared, ignore=leave, dirs_exist_ok=True)
            config = self.configured(read_facts(aside)["settings"], [f"train.prefix={prefix}"])
            train(config, self.of.train, self.of.dev, aside, self.say)
        return folder


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
    """`found` in the order of `base`: the same mentions, whose text a variant may have changed."""
    by_key = {j.key: j for j in found.judged}
    return replace(found, judged=[by_key[j.key] for j in base.judged])


def _output(found: Evaluation) -> Path:
    assert isinstance(found.output, Path)
    return found.output


def _write(path: Path, found: dict[str, Any]) -> None:
    storage.write(path, json.dumps(found, indent=2))
