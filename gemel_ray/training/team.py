"""The workers of a data-parallel training, and the share of each.

A sum over all workers equals the sum of a single worker: losses and gradients are divided by the number of
tokens of the whole batch before they are summed, never averaged later. Knows torch.distributed, not Ray.
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
    """This worker's number `rank` among `size` workers."""

    rank: int = 0
    size: int = 1

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This worker's part of the items; if they are sorted by length, all parts are similar."""
        return list(items[self.rank :: self.size])

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, weights: Sequence[torch.Tensor]) -> None:
        """Replace the weights of all workers by the first worker's."""
        if self.size > 1:
            for weight in weights:
                dist.broadcast(weight, 0)


def batch_of(step: int, examples: int, size: int, seed: int) -> list[int]:
    """The examples of step `step` (0 is the first). Every epoch is shuffled differently, and equally for any
    number of workers and after any interruption."""
    epoch, at = divmod(step, -(-examples // size))
    order = list(range(examples))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order[at * size : (at + 1) * size]
