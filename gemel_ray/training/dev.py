"""What a mapper does on the dev examples, and what doing nothing does: no pictures, or a mapper of zeros.

Every worker measures its share; all know the sums.
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

NOTHING = {"without": "without pictures", "zero": "with a mapper of zeros"}


@dataclass(frozen=True)
class Dev:
    model: Any
    tree: PrefixTree
    examples: Sequence[Example]  # everybody's
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

    def look(
        self, mapper: FeatureMapper, examples: Sequence[Example] | None = None, *, decoded: bool
    ) -> Point:
        """dev_loss and, if `decoded`, accuracy."""
        found = {"dev_loss": self.loss(mapper, examples)}
        return found | ({"accuracy": self.accuracy(mapper, examples)} if decoded else {})

    def nothing(self, mapper: FeatureMapper, *, decoded: bool) -> Point:
        """The looks without pictures and with a mapper of zeros: dev_loss_without, dev_loss_zero, ..."""
        looks = {
            "without": self.look(mapper, [_without(e) for e in self.examples], decoded=decoded),
            "zero": self.look(zeros(mapper), decoded=decoded),
        }
        return {f"{figure}_{name}": look[figure] for name, look in looks.items() for figure in look}

    def _mean(self, total: float) -> float:
        summed = torch.tensor([total], dtype=torch.float64, device=self.model.device)
        return self.team.sum(summed).item() / len(self.examples)


def zeros(mapper: FeatureMapper) -> FeatureMapper:
    """One of the same shape that answers zeros, and can learn."""
    made = copy.deepcopy(mapper)
    for weight in made.linear.parameters():
        torch.nn.init.zeros_(weight)
    return made


def _without(example: Example) -> Example:
    return replace(example, prompt=[n for n in example.prompt if n >= 0], features=example.features[:0])


def order(point: Point, suffix: str = "") -> tuple[float, float]:
    """By accuracy, ties by loss; the greater, the better."""
    return point.get(f"accuracy{suffix}", 0.0), -point[f"dev_loss{suffix}"]


def better_than(best: Point, first: Point) -> str | None:
    """What of NOTHING, measured in the first look, was better than the best look; None where it was."""
    found = [name for name in NOTHING if order(first, f"_{name}") > order(best)]
    return max(found, key=lambda name: order(first, f"_{name}"), default=None)


def told(point: Point, suffix: str = "") -> str:
    accuracy = f", accuracy {point[f'accuracy{suffix}']:.1%}" if f"accuracy{suffix}" in point else ""
    return f"dev loss {point[f'dev_loss{suffix}']:.3f}{accuracy}"
