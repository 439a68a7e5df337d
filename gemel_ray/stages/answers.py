"""Answers by the workspace's ranker: how sure it has to be, and a link by its word alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gemel_ray.errors import Mistake

if TYPE_CHECKING:
    from gemel_ray.knowledge.entities import Entities
    from gemel_ray.knowledge.workspace import Workspace
    from gemel_ray.stages.generate import Generate


def settled(stage: Generate, workspace: Workspace) -> Generate:
    """With the threshold that `precision` asks for. Raises Mistake where the workspace cannot tell it."""
    if not stage.precision:
        return stage
    from gemel_ray.ranking.ranker import Ranker
    from gemel_ray.ranking.ranking import FILE

    if not workspace.ranks:
        raise Mistake(
            "generate.precision is of the workspace's ranker, and this one has none: build it with "
            "bank.ranker solved examples or more, or set generate.nil_threshold instead"
        )
    found = Ranker.load(workspace.ranking_folder / FILE).threshold(stage.precision)
    return replace(stage, precision=0.0, nil_threshold=found)


def by_ranker(asked: Generate, entities: Entities, row: dict[str, Any]) -> dict[str, Any]:
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


def reasons_of(reasons: str | None, said: float | None, chosen: float | None = None) -> str | None:
    """The ranker's reasons, and what the language model gives the answer (None: it did not name it), and by
    its choice among the ranker's best (None: there was none, or the answer is not among them)."""
    if not reasons:
        return None
    choice = "" if chosen is None else f", by its choice: {chosen:.0%}"
    return f"{reasons}; the answer by the language model: {_share(said)}{choice}"


def _share(said: float | None) -> str:
    return "not named" if said is None else f"{said:.0%}"
