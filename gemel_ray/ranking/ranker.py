"""The ranker: small networks that score each candidate by its features; softmax over a mention's candidates
and over none of them gives their probabilities. Run in numpy, so that who ranks needs no torch; taught by
fitting.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gemel_ray import storage
from gemel_ray.errors import Mistake
from gemel_ray.ranking.features import of_features

Matrix = npt.NDArray[np.float32]
_LEAST = 20  # answers that a share is told from
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
            save_file(self.weights, aside, metadata={"ranker": json.dumps(facts)})

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
