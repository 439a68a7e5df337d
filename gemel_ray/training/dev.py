"""Loss and accuracy of a mapper on the dev examples, and of two baselines: no pictures, a mapper of zeros.

Every worker measures its share; all workers get the sums.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gemel_ray.knowledge.prefix_tree import PrefixTree
from gemel_ray.models.mapper import FeatureMapper
from gemel_ray.training.checkpoint import Point
from gemel_ray.training.decoding import decode
from gemel_ray.training.examples import Example
from gemel_ray.training.losses import item_losses
from gemel_ray.training.team import Team

BASELINES = {"without": "without pictures", "zero": "with a mapper of zeros"}


@dataclass(frozen=True)
class Dev:
    """The dev set, and what is needed to measure a mapper on it."""

    model: Any
    tree: PrefixTree
    examples: Sequence[Example]  # of all workers
    team: Team
    tokens: int

    def loss(self, mapper: FeatureMapper, examples: Sequence[Example] | None = None) -> float:
        """The mean of the examples' losses."""
        share = self.team.share(examples or self.examples)
        return self._mean(sum(item_losses(self.model, mapper, share, tokens=self.tokens)))

    def accuracy(self, mapper: FeatureMapper, examples: Sequence[Example] | None = None) -> float:
        share = self.team.share(examples or self.examples)
        answers = decode(self.model, mapper, self.tree, share, tokens=self.tokens)
        return self._mean(sum(a == e.target for a, e in zip(answers, share, strict=True)))

    def measure(
        self, mapper: FeatureMapper, examples: Sequence[Example] | None = None, *, decoded: bool
    ) -> Point:
        """The figures `dev_loss` and, if `decoded`, `accuracy`."""
        point = {"dev_loss": self.loss(mapper, examples)}
        return point | ({"accuracy": self.accuracy(mapper, examples)} if decoded else {})

    def baselines(self, mapper: FeatureMapper, *, decoded: bool) -> Point:
        """The figures of the baselines: dev_loss_without, dev_loss_zero, ..."""
        points = {
            "without": self.measure(mapper, [_without_pictures(e) for e in self.examples], decoded=decoded),
            "zero": self.measure(zeros(mapper), decoded=decoded),
        }
        return {f"{figure}_{name}": point[figure] for name, point in points.items() for figure in point}

    def _mean(self, total: float) -> float:
        summed = torch.tensor([total], dtype=torch.float64, device=self.model.device)
        return self.team.sum(summed).item() / len(self.examples)


def zeros(mapper: FeatureMapper) -> FeatureMapper:
    """A trainable mapper of the same shape whose prefixes are zeros."""
    copied = copy.deepcopy(mapper)
    for weight in copied.linear.parameters():
        torch.nn.init.zeros_(weight)
    return copied


def _without_pictures(example: Example) -> Example:
    return replace(example, prompt=[n for n in example.prompt if n >= 0], features=example.features[:0])


def quality(point: Point, suffix: str = "") -> tuple[float, float]:
    """The accuracy, then the negative loss: greater is better."""
    return point.get(f"accuracy{suffix}", 0.0), -point[f"dev_loss{suffix}"]


def better_baseline(best: Point, first: Point) -> str | None:
    """The baseline, measured at the first evaluation, that is better than the best evaluation, if any."""
    better = [name for name in BASELINES if quality(first, f"_{name}") > quality(best)]
    return max(better, key=lambda name: quality(first, f"_{name}"), default=None)


def summary(point: Point, suffix: str = "") -> str:
    """The figures of a point as text."""
    accuracy = f", accuracy {point[f'accuracy{suffix}']:.1%}" if f"accuracy{suffix}" in point else ""
    return f"dev loss {point[f'dev_loss{suffix}']:.3f}{accuracy}"
