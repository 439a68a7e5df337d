"""The ranker: small networks that score each candidate by its features; softmax over a mention's candidates
and over none of them gives their probabilities. Run in numpy, and taught by fitting.py. And why it puts its
first candidate before the second, in words.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gemel_ray import storage
from gemel_ray.errors import Mistake
from gemel_ray.ranking.evidence import Evidence
from gemel_ray.ranking.features import Group, Question, of_features

Matrix = npt.NDArray[np.float32]
_LEAST = 20  # answers that a share is told from
_NAMED, _WEAK = 4, 0.1  # parts that a reason names, and how much they must weigh
_EXAMPLES = 3  # that a reason names
FAR = 10.0  # deviations: features beyond were hardly seen in the examples
WEIGHTS = ("mean", "scale", "linear", "inner", "inner_bias", "middle", "middle_bias", "outer", "bend")


@dataclass(frozen=True)
class Ranker:
    """`weights` by name: features are shifted by `mean` and multiplied by `scale`. Then each network has
    `linear` [features] beside two hidden layers with ReLU, `inner` [features, hidden], `middle` [hidden,
    hidden], `outer` [hidden]; their first axis is the networks', whose scores are averaged. `bend` [width,
    width] is for the texts' vectors: see context.py."""

    weights: dict[str, Matrix]
    about: dict[str, Any]
    features: tuple[str, ...]

    def log_probabilities(self, features: Matrix) -> Matrix:
        """Of each candidate, [n], from the features of all of one mention's, [n, features]. What is missing
        to 1 is the probability that it is none of them, whose score is 0."""
        scores = self.scores(features)
        logs: Matrix = (scores - np.logaddexp.reduce(scores, initial=0.0)).astype(np.float32)
        return logs

    def scores(self, features: Matrix) -> Matrix:
        """The same, not normalised over the candidates: each stands by itself."""
        w = self.weights
        x = np.clip((features - w["mean"]) * w["scale"], -FAR, FAR)
        hidden = np.maximum(x @ w["inner"] + w["inner_bias"][:, None], 0)
        hidden = np.maximum(hidden @ w["middle"] + w["middle_bias"][:, None], 0)
        scores: Matrix = x @ w["linear"].mean(axis=0) + (hidden @ w["outer"][..., None]).mean(axis=0)[:, 0]
        return scores

    def threshold(self, precision: float) -> float:
        """The least probability from which on so large a share of the answers to held-out examples was
        right. Raises Mistake where no probability is enough."""
        answers = np.array(self.about.get("answers", []), float).reshape(-1, 2)  # the surest first
        said, right = answers.T
        shares = np.cumsum(right) / np.arange(1, len(said) + 1)
        whole = np.append(said[1:] < said[:-1], True)[: len(said)]  # equal ones stand or fall together
        whole[: _LEAST - 1] = False
        enough = np.flatnonzero(whole & (shares >= precision))
        if not len(enough):
            raise Mistake(
                f"generate.precision={precision:g} is more than the workspace's ranker can hold: of its "
                f"answers to {len(said):,} held-out examples the surest were right in "
                f"{max(shares[whole], default=0.0):.1%}. Ask for less, or build the workspace again with "
                "more examples"
            )
        return float(said[enough[-1]])

    def save(self, path: Path) -> None:
        facts = {"features": self.features, **self.about}
        with storage.replacing(path) as aside:
            # Its writer takes the bytes as they lie, whatever the strides.
            whole = {name: np.ascontiguousarray(weights) for name, weights in self.weights.items()}
            save_file(whole, aside, metadata={"ranker": json.dumps(facts)})

    @classmethod
    def load(cls, path: Path) -> Ranker:
        """Raises ValueError, naming the file, for what is not a ranker of these features."""
        try:
            with safe_open(path, "np") as file:
                about = json.loads((file.metadata() or {})["ranker"])
                weights = {name: file.get_tensor(name) for name in WEIGHTS}
        except (SafetensorError, OSError, KeyError, ValueError) as fault:
            raise Mistake(f"{path} is not a ranker written by gemel-ray: {fault}") from fault
        features = tuple(about.pop("features", ()))
        try:
            of_features(features)
        except ValueError as fault:
            raise Mistake(f"{path} was fitted on {fault}: build the workspace again") from fault
        return cls(weights, about, features)


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
    strongest = sorted(weights.items(), key=lambda part: -abs(part[1]))[:_NAMED]
    if strong := [f"{name} {weight:+.1f}" for name, weight in strongest if abs(weight) >= _WEAK]:
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
