"""Why the ranker puts its first candidate before the second, in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gemel_ray.ranking.cases import Question
from gemel_ray.ranking.evidence import Evidence
from gemel_ray.ranking.features import Group
from gemel_ray.ranking.ranker import Ranker

_MOST, _LEAST = 4, 0.1  # parts that are named, and how much they must weigh
_EXAMPLES = 3


def parts(ranker: Ranker, groups: Sequence[Group], features: npt.NDArray[np.float32]) -> dict[str, float]:
    """Of the first of two candidates, [2, features], by how much its score falls where a group of features is
    as the second's."""
    ends = np.cumsum([len(group.features) for group in groups])
    changed = np.repeat(features[:1], len(groups), axis=0)
    for i, (group, end) in enumerate(zip(groups, ends.tolist(), strict=True)):
        changed[i, end - len(group.features) : end] = features[1, end - len(group.features) : end]
    own, *others = ranker.scores(np.concatenate([features[:1], changed])).tolist()
    return {group.name: own - other for group, other in zip(groups, others, strict=True)}


def told(
    names: Sequence[str],
    probability: float,
    weights: dict[str, float],
    examples: Sequence[str],
) -> str:
    """Of the likeliest candidate, the first of `names`; the second is what it is compared with. `examples`:
    ids of the nearest ones that mean it."""
    said = f"ranker: {names[0]} {probability:.0%}"
    strongest = sorted(weights.items(), key=lambda part: -abs(part[1]))[:_MOST]
    if strong := [f"{name} {weight:+.1f}" for name, weight in strongest if abs(weight) >= _LEAST]:
        said += f", against {names[1]}: {', '.join(strong)}"
    return said + (f"; nearest examples of it: {', '.join(examples)}" if examples else "")


def voters(asked: Question, entities: npt.NDArray[np.int32], entity: int) -> list[int]:
    """The nearest examples of an entity, the nearest first; `entities`: of each row of the bank."""
    rows = asked.nearest[entities[asked.nearest] == entity]
    return rows[::-1][:_EXAMPLES].tolist()


def best_two(evidence: Evidence, order: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The features of the likeliest candidate and of the next, or of itself where it is alone."""
    two: npt.NDArray[np.float32] = evidence.features[[order[0], order[min(1, len(order) - 1)]]]
    return two
