"""The workers of a data-parallel training, and who does what.

A sum over all workers is what one worker would have summed: losses and gradients are divided by the whole
batch's tokens before, never averaged after. Knows torch.distributed, and nothing of Ray.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")


@dataclass(frozen=True)
class Team:
    """This worker is number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This worker's part; `items` sorted by length give everyone as much."""
        return list(items[self.rank :: self.size])

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def same(self, weights: Sequence[torch.Tensor]) -> None:
        """Everyone takes the first worker's."""
        if self.size > 1:
            for weight in weights:
                dist.broadcast(weight, 0)


def batch_of(step: int, examples: int, size: int, seed: int) -> list[int]:
    """The examples of step `step` (0 is the first): every epoch in an order of its own, the same for any
    number of workers and after any interruption."""
    a_pass = -(-examples // size)
    epoch, at = divmod(step, a_pass)
    order = list(range(examples))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order[at * size : (at + 1) * size]
