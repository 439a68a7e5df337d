"""A cell's workspace: the study's, or a copy of it with another mapper, ranker, retrieval or joining weights.
A copy shares all other files."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemel_ray import storage
from gemel_ray.config import Config
from gemel_ray.knowledge import versions
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.ranking import retrieval
from gemel_ray.ranking.features import groups_of
from gemel_ray.ranking.ranker import Ranker
from gemel_ray.ranking.ranking import FILE
from gemel_ray.study.cells import Cell

if TYPE_CHECKING:
    from gemel_ray.ranking.fitting import Prepared

Say = Callable[[str], None]
_MADE = "made.json"
# From a workspace's settings and --set options. Commands pass a partial function.
Configured = Callable[[dict[str, Any], Sequence[str]], Config]


@dataclass(frozen=True)
class Workspaces:
    """`folder` has the copies of `workspace`, one for each way in which cells differ from it."""

    workspace: Path
    folder: Path
    train: Sequence[str]
    dev: Sequence[str]
    configured: Configured
    say: Say
    kept: dict[int, Prepared] = field(default_factory=dict)

    def of(self, cell: Cell) -> Path:
        """The cell's workspace, made where it is missing."""
        name = copy_name(cell)
        if not name:
            return self.workspace
        chosen_by = [Path(file).stem for file in self.dev if cell.joins or cell.prefix]
        version = read_facts(self.workspace)["version"]
        folder = self.folder / "-".join([version, name, *chosen_by])
        if not folder.exists():
            self._prepare(cell)
            began = time.process_time()
            with storage.new_folder(folder) as aside:
                self._make(cell, aside)
                if not cell.prefix:  # a mapper is trained in other processes
                    spent = round(time.process_time() - began, 1)
                    (aside / _MADE).write_text(json.dumps({"processor_seconds": spent}))
        return folder

    def _make(self, cell: Cell, folder: Path) -> None:
        if cell.prefix:
            from gemel_ray.training import train

            self._copy(folder, "mapper.safetensors")
            train(self._config(folder, f"train.prefix={cell.prefix}"), self.train, self.dev, folder, self.say)
        elif cell.joins:
            from gemel_ray.training import learn

            self._copy(folder)
            learn(self._config(folder, *cell.settings), self.dev, folder, self.say)
        else:
            from gemel_ray.ranking.making import refit

            self._copy(folder)
            config, without = self._config(folder), [cell.without] if cell.without else []
            opened = Workspace.open(folder, config)
            if cell.retrieval and not retrieval.prepared(opened.ranking_folder):
                for file in retrieval.labels_in(self._labels()):
                    os.link(file, opened.ranking_folder / file.name)
            self.say(refit(opened, config, self.kept[cell.seed], without, cell.retrieval))

    def _prepare(self, cell: Cell) -> None:
        """Prepare what the cell's ranker is fitted on, and keep it: most cells fit on the same. So do the
        retrievals on the labels of the knowledge graph."""
        from gemel_ray.ranking.making import prepare

        if cell.fits and cell.seed not in self.kept:
            config = self._config(self.workspace)
            self.kept.clear()
            self.kept[cell.seed] = prepare(Workspace.open(self.workspace, config), config, cell.seed)
        if cell.retrieval:
            self._labels()

    def _labels(self) -> Path:
        """The folder with the vectors of the knowledge graph's labels: the workspace's, if it has a retrieval
        itself, else one of the study, which is made once."""
        from gemel_ray.ranking.making import encode_labels

        config = self._config(self.workspace)
        opened = Workspace.open(self.workspace, config)
        if retrieval.prepared(opened.ranking_folder):
            return opened.ranking_folder
        folder = self.folder / f"{opened.facts['version']}-labels"
        if not folder.exists():
            with storage.new_folder(folder) as aside:
                encode_labels(opened, config, aside)
        return folder

    def _config(self, folder: Path, *settings: str) -> Config:
        return self.configured(read_facts(folder)["settings"], settings)

    def _copy(self, folder: Path, *left_out: str) -> None:
        """Copy the workspace except for these files, its training and its cache."""
        ignored = shutil.ignore_patterns("training", "cache", *left_out)
        shutil.copytree(
            self.workspace, folder, copy_function=_link_or_copy, ignore=ignored, dirs_exist_ok=True
        )


def copy_name(cell: Cell) -> str:
    """The name of the copy; empty where the cell takes the workspace as it is."""
    settings = cell.settings if cell.joins else ()
    parts = (
        f"prefix {cell.prefix}" if cell.prefix else "",
        f"without {cell.without}" if cell.without else "",
        f"retrieval {cell.retrieval}" if cell.retrieval else "",
        f"seed {cell.seed}" if cell.seed else "",
        f"joined {' '.join(settings)}" if cell.joins else "",
    )
    return re.sub(r"[^\w.]+", "-", " ".join(filter(None, parts))).strip("-")


def _link_or_copy(source: str, target: str) -> None:
    """Make a hard link. Vectors are copied, since Qdrant writes in their files."""
    (shutil.copy2 if "vectors" in Path(source).parts else os.link)(source, target)


def evidence_of(workspace: Path) -> list[str]:
    """The evidence of the workspace's ranker; empty without one, and for the default: too few examples to fit
    one without some of it."""
    file = versions.folder(workspace, versions.current(workspace)) / "ranking" / FILE
    ranker = Ranker.load(file) if file.exists() else None
    return [g.name for g in groups_of(ranker.features)] if ranker and not ranker.is_default else []


def seconds_to_make(folder: Path) -> float | None:
    """Processor seconds that making this copy took, without what several share; None where that is not
    known."""
    file = folder / _MADE
    return float(json.loads(file.read_text())["processor_seconds"]) if file.exists() else None
