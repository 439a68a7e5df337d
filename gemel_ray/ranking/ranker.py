"""The ranker: small networks that score each candidate by its features. The softmax over a mention's
candidates and over none of them gives the probabilities. It runs in numpy, and is fitted by fitting.py. And
explanations: why its first candidate is before the second."""

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
from gemel_ray.ranking.features import Group, Question, groups_of

Matrix = npt.NDArray[np.float32]
_LEAST = 20  # answers from which a share can be estimated
_NAMED, _WEAK = 4, 0.1  # contributions that an explanation names, and the least of them
_EXAMPLES = 3  # that an explanation names
FAR = 10.0  # standard deviations at which features are clipped
NETWORK = ("linear", "inner", "inner_bias", "middle", "middle_bias", "outer")  # a network's weights
WEIGHTS = ("mean", "scale", *NETWORK, "bend")


@dataclass(frozen=True)
class Ranker:
    """`weights` by name: features are shifted by `mean` and multiplied by `scale`. Then each network has
    `linear` [features] beside two hidden layers with ReLU, `inner` [features, hidden], `middle` [hidden,
    hidden], `outer` [hidden]; their first axis is the networks', whose scores are averaged. `bend` [width,
    width] is for the texts' vectors: see context.py."""

    weights: dict[str, Matrix]
    about: dict[str, Any]
    features: tuple[str, ...]

    @property
    def is_default(self) -> bool:
        """Whether it is the one fitted on public data, or begins with its weights."""
        return bool(self.about.get("default"))

    @property
    def origin(self) -> str:
        """Where it comes from, in words."""
        fitted_on = f"{self.about['examples']:,} examples" if "examples" in self.about else ""
        if self.is_default:
            return "the default ranker" + (f", fitted further on {fitted_on}" if fitted_on else "")
        return f"a ranker fitted on {fitted_on}"

    @property
    def encoded(self) -> bool:
        """Whether it knows vectors of the workspace's encoder."""
        return bool(self.about.get("encoded", True))

    def log_probabilities(self, features: Matrix) -> Matrix:
        """The log-probability of each candidate, [n], from the features of all candidates of one mention, [n,
        features]. The rest to 1 is the probability that none of them is meant, whose score is 0."""
        scores = self.scores(features)
        logs: Matrix = (scores - np.logaddexp.reduce(scores, initial=0.0)).astype(np.float32)
        return logs

    def scores(self, features: Matrix) -> Matrix:
        """The scores, not normalised over the candidates."""
        w = self.weights
        x = np.clip((features - w["mean"]) * w["scale"], -FAR, FAR)
        hidden = np.maximum(x @ w["inner"] + w["inner_bias"][:, None], 0)
        hidden = np.maximum(hidden @ w["middle"] + w["middle_bias"][:, None], 0)
        scores: Matrix = x @ w["linear"].mean(axis=0) + (hidden @ w["outer"][..., None]).mean(axis=0)[:, 0]
        return scores

    def threshold(self, precision: float) -> float:
        """The least probability such that the answers to held-out examples with at least this probability had
        this precision. Raises Mistake if there is none."""
        if "answers" not in self.about:
            raise Mistake(
                "generate.precision needs a ranker fitted on the workspace's examples, and this one has the "
                "default: build it with more solved examples, or set generate.nil_threshold"
            )
        answers = np.array(self.about["answers"], float).reshape(-1, 2)  # the surest first
        probabilities, right = answers.T
        shares = np.cumsum(right) / np.arange(1, len(probabilities) + 1)
        whole = np.append(probabilities[1:] < probabilities[:-1], True)[
            : len(probabilities)
        ]  # equal ones together
        whole[: _LEAST - 1] = False
        enough = np.flatnonzero(whole & (shares >= precision))
        if not len(enough):
            raise Mistake(
                f"generate.precision={precision:g} is more than the workspace's ranker can reach: of its "
                f"answers to {len(probabilities):,} held-out examples the most probable were right in "
                f"{max(shares[whole], default=0.0):.1%}. Ask for less, or build the workspace again with "
                "more examples"
            )
        return float(probabilities[enough[-1]])

    def save(self, path: Path) -> None:
        facts = {"features": self.features, **self.about}
        with storage.replacing(path) as aside:
            # The writer ignores strides.
            whole = {name: np.ascontiguousarray(weights) for name, weights in self.weights.items()}
            save_file(whole, aside, metadata={"ranker": json.dumps(facts)})

    @classmethod
    def load(cls, path: Path, remedy: str = "build the workspace again") -> Ranker:
        """Read a ranker. Raises ValueError, which names the file, if it is not a ranker of these features:
        then `remedy` helps."""
        try:
            with safe_open(path, "np") as file:
                about = json.loads((file.metadata() or {})["ranker"])
                weights = {name: file.get_tensor(name).astype(np.float32, copy=False) for name in WEIGHTS}
        except (SafetensorError, OSError, KeyError, ValueError) as fault:
            raise Mistake(f"{path} is not a ranker written by gemel-ray: {fault}") from fault
        features = tuple(about.pop("features", ()))
        try:
            groups_of(features)
        except ValueError as fault:
            raise Mistake(f"{path} was fitted on {fault}: {remedy}") from fault
        return cls(weights, about, features)


def contributions(
    ranker: Ranker, groups: Sequence[Group], features: npt.NDArray[np.float32]
) -> dict[str, float]:
    """By how much the score of the first of two candidates, [2, features], falls when a group of features is
    replaced by the second's."""
    ends = np.cumsum([len(group.features) for group in groups])
    changed = np.repeat(features[:1], len(groups), axis=0)
    for i, (group, end) in enumerate(zip(groups, ends.tolist(), strict=True)):
        changed[i, end - len(group.features) : end] = features[1, end - len(group.features) : end]
    score, *others = ranker.scores(np.concatenate([features[:1], changed])).tolist()
    return {group.name: score - other for group, other in zip(groups, others, strict=True)}


def explanation(
    names: Sequence[str],
    probability: float,
    weights: dict[str, float],
    examples: Sequence[str],
) -> str:
    """Why the first of `names` is the likeliest candidate, compared with the second. `examples`: ids of its
    nearest examples."""
    text = f"ranker: {names[0]} {probability:.0%}"
    strongest = sorted(weights.items(), key=lambda part: -abs(part[1]))[:_NAMED]
    if strong := [f"{name} {weight:+.1f}" for name, weight in strongest if abs(weight) >= _WEAK]:
        text += f", against {names[1]}: {', '.join(strong)}"
    return text + (f"; nearest examples of it: {', '.join(examples)}" if examples else "")


def nearest_examples(asked: Question, entities: npt.NDArray[np.int32], entity: int) -> list[int]:
    """The nearest examples of an entity, the nearest first; `entities`: of each row of the bank."""
    rows = asked.nearest[entities[asked.nearest] == entity]
    return rows[::-1][:_EXAMPLES].tolist()


def best_two(evidence: Evidence, order: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The features of the two likeliest candidates, or of the only one twice."""
    two: npt.NDArray[np.float32] = evidence.features[[order[0], order[min(1, len(order) - 1)]]]
    return two
