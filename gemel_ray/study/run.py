"""A study's jobs, one after the other, and their rows."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Sequence
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
from gemel_ray.records import Row
from gemel_ray.study import variants
from gemel_ray.study.cells import BASE, GROUPS, Cell
from gemel_ray.study.rows import CellRow, StudyRows

Say = Callable[[str], None]
# From a workspace's settings and --set options. Commands pass a partial function.
Configured = Callable[[dict[str, Any], Sequence[str]], Config]


@dataclass(frozen=True)
class Study:
    """What to measure. The `train` files show which targets were seen in training, and train mappers of other
    prefix lengths, which are chosen by the `dev` files."""

    workspace: Path
    output: Path
    gold: Sequence[str]
    train: Sequence[str] = ()
    dev: Sequence[str] = ()
    limit: int = 300
    seed: int = 0


def study(plan: Study, groups: Sequence[str], configured: Configured, say: Say) -> StudyRows:
    """Run all cells of `groups`, one row per cell. OUTPUT/study.json is rewritten after each."""
    documents = variants.sample(plan.gold, plan.limit, plan.seed)
    pictures = variants.have_pictures(documents)
    runner = _Runner(plan, documents, configured, say)
    base = runner.evaluation(BASE)
    rows: StudyRows = {
        "gold": list(plan.gold),
        "documents": len(documents),
        "workspace": str(plan.workspace),
        "base": _row("", BASE, base, base),
        "cells": [],
        "left_out": [],
    }
    for group, cell in ((g, c) for g in groups for c in GROUPS[g]):
        why = _why_left_out(plan, cell, pictures, runner.evidence)
        if why:
            rows["left_out"].append({"group": group, "cell": cell.name, "why": why})
            continue
        say(f"{group}: {cell.name}")
        rows["cells"].append(_row(group, cell, runner.evaluation(cell), base))
        _write(plan.output / "study.json", rows)
    _write(plan.output / "study.json", rows)
    return rows


def _why_left_out(plan: Study, cell: Cell, pictures: bool, evidence: Collection[str]) -> str | None:
    if cell.without and cell.without not in evidence:
        return "the workspace has no ranker with this evidence"
    if cell.needs_pictures and not pictures:
        return "the documents have no pictures"
    if cell.prefix and not (plan.train and plan.dev):
        return "a mapper of this length has to be trained: give --train and --dev"
    return None


class _Runner:
    """Runs cells, unless their output is there already, and evaluates them."""

    def __init__(self, plan: Study, rows: list[Row], configured: Configured, say: Say) -> None:
        self.plan, self.rows, self.configured, self.say = plan, rows, configured, say
        self.known = known(plan.train)
        self.evidence = _evidence(plan.workspace)

    def evaluation(self, cell: Cell) -> Evaluation:
        file = self.plan.output / "inputs" / f"{cell.variant}.parquet"
        if not file.exists():
            variants.write(self.rows, cell.variant, file)
        folder = self._workspace(cell)
        config = self.configured(read_facts(folder)["settings"], cell.settings)
        opened = Workspace.open(folder, config)
        opened.ask(self.say)
        without = f"-without-{cell.without.replace(' ', '-')}" if cell.without else ""
        run = f"{config.fingerprint(opened.version)}-{cell.variant}{without}"
        output = self.plan.output / "runs" / run
        if not (output / "manifest.json").exists():
            with Meter("documents", len(self.rows)) as meter:
                link(config, folder, [str(file)], output, meter.add)
        return evaluate(output, [str(file)], self.known)

    def _workspace(self, cell: Cell) -> Path:
        """The workspace with a mapper of the cell's prefix length, or with a ranker without the evidence that
        the cell leaves out: a copy that shares all other files."""
        if not cell.prefix and not cell.without:
            return self.plan.workspace
        name = f"prefix-{cell.prefix}" if cell.prefix else f"without-{cell.without.replace(' ', '-')}"
        folder = self.plan.output / "workspaces" / name
        if folder.exists():
            return folder
        if cell.without:
            return self._refitted(folder, cell.without)
        from gemel_ray.training import train

        with storage.new_folder(folder) as aside:
            self._copy(aside, "mapper.safetensors")
            config = self.configured(read_facts(aside)["settings"], [f"train.prefix={cell.prefix}"])
            train(config, self.plan.train, self.plan.dev, aside, self.say)
        return folder

    def _refitted(self, folder: Path, without: str) -> Path:
        from gemel_ray.ranking.making import refit

        with storage.new_folder(folder) as aside:
            self._copy(aside)
            config = self.configured(read_facts(aside)["settings"], ())
            self.say(refit(Workspace.open(aside, config), config, [without]))
        return folder

    def _copy(self, folder: Path, *left_out: str) -> None:
        """Copy the workspace except for these files, its training and its cache."""
        ignored = shutil.ignore_patterns("training", "cache", *left_out)
        workspace = self.plan.workspace
        shutil.copytree(workspace, folder, copy_function=_link_or_copy, ignore=ignored, dirs_exist_ok=True)


def _evidence(workspace: Path) -> list[str]:
    """The evidence of the workspace's ranker; empty without a ranker."""
    from gemel_ray.ranking.features import of_features
    from gemel_ray.ranking.ranker import Ranker
    from gemel_ray.ranking.ranking import FILE

    file = versions.folder(workspace, versions.current(workspace)) / "ranking" / FILE
    return [group.name for group in of_features(Ranker.load(file).features)] if file.exists() else []


def _link_or_copy(source: str, target: str) -> None:
    """Make a hard link. Vectors are copied, since Qdrant writes in their files."""
    (shutil.copy2 if "vectors" in Path(source).parts else os.link)(source, target)


def _row(group: str, cell: Cell, run: Evaluation, base: Evaluation) -> CellRow:
    figures, manifest = run.figures(), json.loads((_output(run) / "manifest.json").read_text())
    usage = manifest["measures"].get("generate", {})
    mentions = max(1, usage.get("mentions", 0))
    against = compare(_aligned(run, base), base).figures()
    return {
        "group": group,
        "cell": cell.name,
        "settings": list(cell.settings),
        "variant": cell.variant,
        "run": _output(run).name,
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


def _aligned(run: Evaluation, base: Evaluation) -> Evaluation:
    """`run` with the gold mentions of `base`: they are the same in the same order, but a variant may have
    changed their words and places."""
    pairs = zip(run.judged, base.judged, strict=True)
    return replace(run, judged=[replace(ours, gold=theirs.gold) for ours, theirs in pairs])


def _output(run: Evaluation) -> Path:
    assert isinstance(run.output, Path)
    return run.output


def _write(path: Path, rows: StudyRows) -> None:
    storage.write(path, json.dumps(rows, indent=2))
