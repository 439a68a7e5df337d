"""Whether links with a probability of p are right in a share p of cases, and what a threshold would give.

The probability is that of the best candidate, so this candidate is judged, even if the run's threshold
turned the answer into NIL. Mentions without a probability (errors, missing links) are never covered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gemel_ray.evaluation.figures import resampling
from gemel_ray.evaluation.judged import Judged
from gemel_ray.evaluation.plain import PlainCalibration
from gemel_ray.evaluation.resampling import Figure, Numbers, Resampling

BINS = 10
STEPS = 20  # of the coverage


@dataclass(frozen=True)
class Bin:
    """Mentions of similar probability, and the accuracy of their links."""

    probability: float  # the mean
    accuracy: Figure


@dataclass(frozen=True)
class Step:
    """The mentions whose links have at least this probability, their share of all, and their accuracy."""

    threshold: float
    coverage: float
    accuracy: Figure


@dataclass(frozen=True)
class Calibration:
    """`reliability` in bins of equal mass, expected calibration error and Brier score over the mentions with
    a probability; `coverage`: accuracy when only the mentions with the highest probabilities are answered."""

    reliability: Sequence[Bin]
    expected_error: Figure
    brier: Figure
    coverage: Sequence[Step]

    def plain(self) -> PlainCalibration:
        return {
            "reliability": [
                {"probability": round(b.probability, 4), "accuracy": b.accuracy.plain()}
                for b in self.reliability
            ],
            "expected_calibration_error": self.expected_error.plain(),
            "brier": self.brier.plain(),
            "coverage": [
                {
                    "threshold": round(s.threshold, 4),
                    "coverage": round(s.coverage, 4),
                    "accuracy": s.accuracy.plain(),
                }
                for s in self.coverage
            ],
        }


def calibration(judged: Sequence[Judged]) -> Calibration | None:
    """The calibration of the links of `judged`; None if no mention has a probability."""
    sure = [j for j in judged if j.probability is not None]
    if not sure:
        return None
    probabilities = np.array([j.probability for j in sure], float)
    right = np.array([j.rank == 1 for j in sure], float)
    drawn = resampling(sure)
    errors = (probabilities - right)[:, None] ** 2
    bins = equal_mass(probabilities)
    return Calibration(
        _reliability(drawn, probabilities, right, bins),
        _expected_error(drawn, probabilities, right, bins),
        drawn.means(errors, np.ones_like(errors))[0],
        _coverage(drawn, probabilities, right, len(judged)),
    )


def equal_mass(probabilities: Numbers) -> npt.NDArray[np.bool_]:
    """Which bin each probability is in: [mentions, bins]. Equal probabilities share a bin, so there can be
    fewer bins, of somewhat different sizes."""
    edges = np.quantile(probabilities, np.linspace(0, 1, BINS + 1)[1:-1])
    number = np.searchsorted(edges, probabilities)
    return number[:, None] == np.unique(number)


def _reliability(
    drawn: Resampling, probabilities: Numbers, right: Numbers, bins: npt.NDArray[np.bool_]
) -> list[Bin]:
    shares = drawn.shares(np.broadcast_to(right[:, None], bins.shape), bins)
    means = [float(probabilities[bins[:, i]].mean()) for i in range(bins.shape[1])]
    return [Bin(mean, share) for mean, share in zip(means, shares, strict=True)]


def _expected_error(
    drawn: Resampling, probabilities: Numbers, right: Numbers, bins: npt.NDArray[np.bool_]
) -> Figure:
    """The mean distance between probability and accuracy, bin by bin (Naeini et al., AAAI 2015). Resamples
    use the same bins. They lie slightly above the value, since noise increases a distance on average."""
    differences = (probabilities - right)[:, None] * bins
    sums = drawn.sums(np.concatenate([differences, np.ones((len(probabilities), 1))], axis=1))
    return drawn.figure(np.abs(sums[:, :-1]).sum(1) / sums[:, -1], len(probabilities))


def _coverage(drawn: Resampling, probabilities: Numbers, right: Numbers, mentions: int) -> list[Step]:
    """The accuracy of the mentions at or above each of several thresholds, the highest threshold first."""
    descending = -np.sort(-probabilities)
    wanted = np.unique(np.ceil(np.linspace(0, 1, STEPS + 1)[1:] * len(probabilities)).astype(int))
    thresholds = np.unique(descending[wanted - 1])[::-1]
    covered = probabilities[:, None] >= thresholds
    shares = drawn.shares(np.broadcast_to(right[:, None], covered.shape), covered)
    return [
        Step(float(threshold), share.mentions / mentions, share)
        for threshold, share in zip(thresholds, shares, strict=True)
    ]
