"""A study's jobs, one after the other, and their rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from gemel_ray import storage
from gemel_ray.config import Config
from gemel_ray.errors import Terminated
from gemel_ray.evaluation import Evaluation, evaluate, known
from gemel_ray.job.driving import Compute, Job, drive, in_this_process, plain
from gemel_ray.job.record import Record, write_manifest
from gemel_ray.job.worker import with_source_column
from gemel_ray.knowledge.entities import Targets
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.linking import linking_graph
from gemel_ray.measuring.machine import machine
from gemel_ray.offline import link
from gemel_ray.progress import Meter, Progress
from gemel_ray.records import Row
from gemel_ray.stages.answering import asks_model
from gemel_ray.study import variants
from gemel_ray.study.cells import BASE, GROUPS, Cell
from gemel_ray.study.rows import CellRow, StudyRows, row
from gemel_ray.study.workspaces import Configured, Say, Workspaces, evidence_of, seconds_to_make


@dataclass(frozen=True)
class Study:
    """What to measure. The `train` files show which targets were seen in training, and train mappers of other
    prefix lengths. These, and the weights that join ranker and language model, are chosen by the documents of
    the `dev` files that are not measured."""

    workspace: Path
    output: Path
    gold: Sequence[str]
    train: Sequence[str] = ()
    dev: Sequence[str] = ()
    limit: int = 300
    seed: int = 0


def study(plan: Study, groups: Sequence[str], configured: Configured, say: Say) -> StudyRows:
    """Run all cells of `groups`, one row per cell. OUTPUT/study.json is rewritten after each; rows of other
    groups that were measured against the same base stay in it. A cell that fails does not stop the others."""
    documents = variants.sample(plan.gold, plan.limit, plan.seed)
    runner = _Runner(plan, documents, configured, say)
    base = runner.evaluation(BASE)
    rows: StudyRows = {
        "gold": list(plan.gold),
        "documents": len(documents),
        "workspace": str(plan.workspace),
        "machine": machine(),
        "base": runner.row("", BASE, base),
        "cells": [],
        "left_out": [],
        "failed": [],
    }
    take_over(plan.output / "study.json", rows, groups)
    cells = [(group, cell) for group in groups for cell in GROUPS[group]]
    for number, (group, cell) in enumerate(cells, 1):
        why = runner.why_left_out(cell)
        if why:
            rows["left_out"].append({"group": group, "cell": cell.name, "why": why})
            continue
        say(f"{number} of {len(cells)}, {group}: {cell.name}")
        try:
            rows["cells"].append(runner.row(group, cell, base))
        except Terminated:
            raise
        except Exception as reason:  # of whatever kind: hours of other cells must not be lost
            why = plain(reason)
            say(f"{group}: {cell.name} failed: {why}")
            rows["failed"].append({"group": group, "cell": cell.name, "why": why})
        _write(plan.output / "study.json", rows)
    _write(plan.output / "study.json", rows)
    return rows


def take_over(file: Path, rows: StudyRows, groups: Collection[str]) -> None:
    """Take over the rows of the other groups from an earlier study with the same base."""
    if not file.exists():
        return
    former = cast(StudyRows, json.loads(file.read_text()))
    if former["base"]["run"] != rows["base"]["run"]:
        return
    rows["machine"] = former["machine"]
    rows["cells"] += [cell for cell in former["cells"] if cell["group"] not in groups]
    rows["left_out"] += [cell for cell in former["left_out"] if cell["group"] not in groups]
    rows["failed"] += [cell for cell in former["failed"] if cell["group"] not in groups]


class _Runner:
    """Runs cells, unless their output is there already, and evaluates them."""

    def __init__(self, plan: Study, documents: list[Row], configured: Configured, say: Say) -> None:
        self.plan, self.documents, self.configured, self.say = plan, documents, configured, say
        self.known = known(plan.train)
        self.evidence = evidence_of(plan.workspace)
        opened = Workspace.open(plan.workspace, configured(read_facts(plan.workspace)["settings"], ()))
        self.ranks = opened.ranks
        self.targets = Targets(opened.entities)
        self.pictures = variants.have_pictures(documents, features=opened.features is not None)
        self.inputs = plan.output / "inputs" / variants.digest(documents)
        self.dev = self._dev()
        self.workspaces = Workspaces(
            plan.workspace, plan.output / "workspaces", plan.train, self.dev, configured, say
        )

    def _dev(self) -> list[str]:
        """The documents of the dev files that are not measured, in a file; nothing where there are none."""
        others = variants.others(self.plan.dev, self.documents)
        file = self.inputs / f"dev-{variants.digest(others)}.parquet"
        if others and not file.exists():
            variants.write(others, "clean", file)
        return [str(file)] if others else []

    def why_left_out(self, cell: Cell) -> str | None:
        """Why the cell cannot be measured; None: it can."""
        if cell.joins and not self.ranks:
            return "the workspace has no ranker"
        if cell.fits and not self.evidence:
            return "the workspace has no ranker of its own"
        if cell.without and cell.without not in self.evidence:
            return "the workspace has no ranker with this evidence"
        if cell.needs_pictures and not self.pictures:
            return "the documents have no pictures"
        if cell.prefix and not (self.plan.train and self.dev):
            return "a mapper of this length has to be trained: give --train and --dev"
        if cell.joins and not self.dev:
            return "the weights have to be learned: give --dev with other documents than are measured"
        return None

    def row(self, group: str, cell: Cell, base: Evaluation) -> CellRow:
        evaluation = self.evaluation(cell)
        return row(group, cell, evaluation, base, seconds_to_make(self.workspaces.of(cell)))

    def evaluation(self, cell: Cell) -> Evaluation:
        file = self.inputs / f"{cell.variant}.parquet"
        if not file.exists():
            variants.write(self.documents, cell.variant, file)
        folder = self.workspaces.of(cell)
        config = self.configured(read_facts(folder)["settings"], cell.settings)
        opened = Workspace.open(folder, config)
        opened.ask(self.say)
        run = f"{config.fingerprint(opened.version)}-{self.inputs.name}-{cell.variant}"
        if folder != self.plan.workspace:
            run = f"{run}-{folder.name.partition('-')[2]}"
        output = self.plan.output / "runs" / run
        if not (output / "manifest.json").exists():
            with Meter("documents", len(self.documents)) as meter:
                _run_job(config, folder, [str(file)], output, meter.add)
        return evaluate(output, [str(file)], self.known, self.targets)


def _write(path: Path, rows: StudyRows) -> None:
    order = list(GROUPS)
    for some in (rows["cells"], rows["left_out"], rows["failed"]):
        some.sort(key=lambda one: order.index(one["group"]) if one["group"] in order else len(order))
    storage.write(path, json.dumps(rows, indent=2))


# The job of one cell: on Ray like any other, or, where no language model is asked, in this process.


def _run_job(
    config: Config, workspace: Path, inputs: Sequence[str], output: Path, report: Callable[[Progress], None]
) -> None:
    """Link the documents of `inputs`; what `output` has already is not done again."""
    opened = Workspace.open(workspace, config)
    if asks_model(config.generate, config.retrieve, opened):
        link(config, workspace, inputs, output, report)
    else:
        finished = _done_here(config, opened, inputs, output, report)
        write_manifest(config, workspace, inputs, finished, opened.knowledge)


def _done_here(
    config: Config,
    opened: Workspace,
    inputs: Sequence[str],
    output: Path,
    report: Callable[[Progress], None],
) -> Record:
    """The same as `link`. Starting Ray and its workers would take longer than the work of a small job."""
    graph = with_source_column(linking_graph(config, opened))

    @contextmanager
    def computing(_: Sequence[str]) -> Iterator[Compute]:
        segment = graph.segment(graph.names, opened)
        try:
            yield lambda run: in_this_process(run, segment, config.input)
        finally:
            segment.close()

    return drive(Job(inputs, output, config.input), computing, report)
