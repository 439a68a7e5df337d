"""Generate without a language model: the workspace's ranker alone decides (generate.ranking=1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from gemel_ray.stage import Work, answer
from gemel_ray.stages.answers import by_ranker
from gemel_ray.stages.generate import Generate

if TYPE_CHECKING:
    from gemel_ray.knowledge.workspace import Workspace


class Ranked(Work):
    """Links from the answers of Retrieve's ranker. No engine is started."""

    def __init__(self, stage: Generate, workspace: Workspace) -> None:
        self.stage, self.entities, self.mentions = stage, workspace.entities, 0

    def renewed(self, workspace: Workspace) -> Work:
        return Ranked(self.stage, workspace)

    def __call__(self, batch: pa.Table) -> pa.Table:
        read = batch.select(["likely", "chances", "reasons", "options"])
        rows = [self._link(row) for row in read.to_pylist()]
        self.mentions += len(rows)
        columns = {name: [row.get(name) for row in rows] for name in self.stage.writes.names}
        table = answer(self.stage.writes, columns, [row.get("error") for row in rows])
        return table.append_column("status", pa.array([row.get("status") for row in rows], pa.string()))

    def _link(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            asked = self.stage.asked(row["options"]) if row["options"] else self.stage
        except ValueError as reason:  # options that do not go together
            return {"error": str(reason)}
        if not row["likely"]:
            return {"status": "nil", "candidates": []}
        return by_ranker(asked, self.entities, row)

    def measures(self) -> dict[str, Any]:
        return {"mentions": self.mentions}
