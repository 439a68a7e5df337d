"""Files among the input that are no documents: hidden ones, this program's own, and what data sets' tools
write beside documents."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

HIDDEN = (".", "_")  # what a hidden name begins with, as for Arrow and Spark
_PACKING = (".gz", ".bz2", ".xz", ".zst")
_OTHERS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "package.json",
           "package-lock.json", "croissant.json")  # fmt: skip
_STATS = re.compile(r"\d{4,}_stats\.json")  # of img2dataset, of a shard
_SHARD = re.compile(r"\d{4,}")
# By link, beside its links and in folders of its own (job/layout.py); a file `run` marks such a folder.
_WRITTEN = ("manifest.json", "inputs.json", "progress.json", "report.html", "traceback.txt", "run")
_WITHIN = ("links/", "parts/", "ledger/", "index/", "passes/", "done/")


@dataclass
class Marks:
    """Which folders this program has written: told by a file in each. `listed`: all files below `root`, where
    a listing told them, so that nothing need be asked."""

    filesystem: Any
    root: str = "\0"
    listed: Collection[str] = ()
    seen: dict[str, tuple[bool, bool]] = field(default_factory=dict)

    def owner(self, path: str, *, workspaces: bool = True) -> str | None:
        """The output folder that a file was written to by link, or the workspace that it lies in."""
        folder, _, inner = path.rpartition("/")
        while folder:
            if folder not in self.seen:
                self.seen[folder] = (
                    self._holds(folder, "run"),
                    self._holds(folder, "workspace.json") and self._holds(folder, "entities.arrow"),
                )
            output, workspace = self.seen[folder]
            if (workspace and workspaces) or (output and (inner in _WRITTEN or inner.startswith(_WITHIN))):
                return folder
            folder, _, name = folder.rpartition("/")
            inner = f"{name}/{inner}"
        return None

    def _holds(self, folder: str, name: str) -> bool:
        if f"{folder}/".startswith(f"{self.root}/"):
            return f"{folder}/{name}" in self.listed
        return bool(self.filesystem.exists(f"{folder}/{name}"))


def foreign(path: str, beside: Collection[str]) -> str | None:
    """Whose a file is, if it is beside others what a tool writes of its own; `beside`: all files."""
    folder, _, name = path.rpartition("/")
    if name in _OTHERS or (name == "state.json" and f"{folder}/dataset_info.json" in beside):
        return "of other tools"
    shard = folder.rpartition("/")[2]
    pair_s = bool(_SHARD.fullmatch(shard)) and f"{folder}.parquet" in beside
    repeats = bool(_SHARD.fullmatch(name.removesuffix(".parquet"))) and (
        path.removesuffix(".parquet") + ".tar" in beside
    )
    return "of img2dataset" if _STATS.fullmatch(name) or pair_s or repeats else None


def ending(path: str) -> str:
    """The kind of a file that no reader knows, by its name."""
    name = path.rpartition("/")[2].lower()
    parts = name.split(".")
    if len(parts) == 1:
        return "without an ending"
    packed = len(parts) > 2 and f".{parts[-1]}" in _PACKING
    return "." + ".".join(parts[-2:] if packed else parts[-1:])
