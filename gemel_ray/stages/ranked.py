"""Answers by the workspace's ranker alone: where it is sure, or everywhere (generate.ranking=1)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from gemel_ray.errors import Mistake
from gemel_ray.records import Row
from gemel_ray.stage import Measures, Work, answer
from gemel_ray.stages.generate import Generate

if TYPE_CHECKING:
    from gemel_ray.knowledge.entities import Entities
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

    def _link(self, row: Row) -> Row:
        try:
            asked = self.stage.asked(row["options"]) if row["options"] else self.stage
        except ValueError as reason:  # options that do not go together
            return {"error": str(reason)}
        if not row["likely"]:
            return {"status": "nil", "candidates": []}
        return by_ranker(asked, self.entities, row)

    def measures(self) -> Measures:
        return {"mentions": self.mentions}


def by_ranker(asked: Generate, entities: Entities, row: Row) -> Row:
    """The columns of a row that has `likely` entities and their `chances`."""
    candidates = [
        {"entity": name, "entity_id": identity, "score": score}
        for (identity, name), score in zip(entities.of(row["likely"]), row["chances"], strict=True)
    ][: asked.beams]
    probability = math.exp(candidates[0]["score"])
    sure = probability >= asked.nil_threshold
    best = candidates[0] if sure else candidates[0] | {"entity": None, "entity_id": None}
    status = "linked" if sure else "nil"
    answer = {"probability": probability, "candidates": candidates, "status": status, "why": row["reasons"]}
    return best | answer


def settled(stage: Generate, workspace: Workspace) -> Generate:
    """The stage with the threshold for the wanted `precision`. Raises Mistake if the workspace has no
    ranker."""
    if not stage.precision:
        return stage
    from gemel_ray.ranking.ranker import Ranker
    from gemel_ray.ranking.ranking import FILE

    if not workspace.ranks:
        raise Mistake(
            "generate.precision needs the workspace's ranker, and this workspace has none: build it with "
            "bank.ranker solved examples or more, or set generate.nil_threshold instead"
        )
    found = Ranker.load(workspace.ranking_folder / FILE).threshold(stage.precision)
    return replace(stage, precision=0.0, nil_threshold=found)
