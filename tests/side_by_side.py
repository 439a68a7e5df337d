"""How `pytest -n 2` divides the tests among its processes: by file, as the tests of a file share fixtures.
Files that need the endpoint on Ray Serve go to one process, others that need the tests' one engine to one:
both take long to start. These come first, then other slow files, so that the processes end at the same time.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from xdist.scheduler import LoadFileScheduling

# What a file asks for. The first that fits is its group, and groups start in this order.
GROUPS = {"endpoint": r"\bserved: Served\b", "engine": r"\b(generating|live_url): "}
SLOW = re.compile(r"\bpytest\.mark\.slow\b")


class ByNeed(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return group(self.config.rootpath / super()._split_scope(nodeid))

    def _assign_work_unit(self, node: Any) -> None:
        self.workqueue.move_to_end(min(self.workqueue, key=turn), last=False)
        super()._assign_work_unit(node)


@cache
def group(file: Path) -> str:
    """The file itself, unless it belongs with others."""
    text = file.read_text()
    return next((name for name, needed in GROUPS.items() if re.search(needed, text)), str(file))


@cache
def turn(name: str) -> int:
    """The earlier, the smaller."""
    if name in GROUPS:
        return list(GROUPS).index(name)
    return len(GROUPS) + (SLOW.search(Path(name).read_text()) is None)
