"""How `pytest -n 2` divides the tests among its processes: by file, since the tests of a file share fixtures;
but all files that start Ray go to one process, and all others that use the tests' one engine to one. So two
Rays never meet on this machine, and no model is loaded twice without need."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from xdist.scheduler import LoadFileScheduling

# What a file asks for. The first that fits is its group. Groups start in this order, before single files:
# the longest work first, so that all processes end at about the same time.
GROUPS = {"ray": r"\bpytest\.mark\.ray\b", "engine": r"\b(generating|live_url): "}


class ByNeed(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return group(self.config.rootpath / super()._split_scope(nodeid))

    def _assign_work_unit(self, node: Any) -> None:
        order = [*GROUPS, *self.workqueue]
        self.workqueue.move_to_end(min(self.workqueue, key=order.index), last=False)
        super()._assign_work_unit(node)


@cache
def group(file: Path) -> str:
    """The file itself, unless it belongs with others."""
    text = file.read_text()
    return next((name for name, needed in GROUPS.items() if re.search(needed, text)), str(file))
