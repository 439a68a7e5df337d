"""Whether a link's probability says how often such links are right, and what a threshold on it gives.

The probability is the best candidate's, so that candidate is judged, also where a threshold of the run
turned it to nil. Mentions without a probability (errors, missing links) are never covered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gemel_ray.evaluation.figures import resampling
from gemel_ray.evaluation.judged import Judged
from gemel_ray.evaluation.resampling import Figure, Numbers, Resampling

BINS = 10
STEPS = 20  # of the coverage


def calibration(judged: Sequence[Judged]) -> dict[str, Any]:
    """`reliability` in bins of equal mass, expected calibration error and Brier score over the mentions
    with a probability; `coverage`: accuracy when only the surest mentions are answered. Empty where no
    mention has a probability."""
    sure = [j for j in judged if j.probability is not None]
    if not sure:
        return {}
    said = np.array([j.probability for j in sure], float)
    right = np.array([j.rank == 1 for j in sure], float)
    drawn = resampling(sure)
    errors = (said - right)[:, None] ** 2
    bins = equal_mass(said)
    return {
        "reliability": _reliability(drawn, said, right, bins),
        "expected_calibration_error": _expected_error(drawn, said, right, bins),
        "brier": drawn.means(errors, np.ones_like(errors))[0],
        "coverage": _coverage(drawn, said, right, len(judged)),
    }


def equal_mass(said: Numbers) -> npt.NDArray[np.bool_]:
    """Which bin each probability is in: [mentions, bins]. Equal ones stay together, so there can be
    fewer bins, and they are as equal as that allows."""
    edges = np.quantile(said, np.linspace(0, 1, BINS + 1)[1:-1])
    number = np.searchsorted(edges, said)
    return number[:, None] == np.unique(number)


def _reliability(
    drawn: Resampling, said: Numbers, right: Numbers, bins: npt.NDArray[np.bool_]
) -> list[dict[str, Any]]:
    shares = drawn.shares(np.broadcast_to(right[:, None], bins.shape), bins)
    means = [float(said[bins[:, i]].mean()) for i in range(bins.shape[1])]
    return [{"probability": mean, "accuracy": share} for mean, share in zip(means, shares, strict=True)]


def _expected_error(drawn: Resampling, said: Numbers, right: Numbers, bins: npt.NDArray[np.bool_]) -> Figure:
    """The mean distance of what was said from what was right, bin by bin (Naeini et al., AAAI 2015). Its
    resamples keep the bins; they lie a little above it, as every distance does that noise is added to."""
    apart = (said - right)[:, None] * bins
    sums = drawn.sums(np.concatenate([apart, np.ones((len(said), 1))], axis=1))
    return drawn.figure(np.abs(sums[:, :-1]).sum(1) / sums[:, -1], len(said))


def _coverage(drawn: Resampling, said: Numbers, right: Numbers, mentions: int) -> list[dict[str, Any]]:
    """Accuracy among the mentions at or above thresholds that cover ever more of all `mentions`."""
    surest = -np.sort(-said)
    wanted = np.unique(np.ceil(np.linspace(0, 1, STEPS + 1)[1:] * len(said)).astype(int))
    thresholds = np.unique(surest[wanted - 1])[::-1]
    covered = said[:, None] >= thresholds
    shares = drawn.shares(np.broadcast_to(right[:, None], covered.shape), covered)
    return [
        {"threshold": float(threshold), "coverage": share.mentions / mentions, "accuracy": share}
        for threshold, share in zip(thresholds, shares, strict=True)
    ]
