"""Hours and money of a job on a number of nodes, in closed form: simple enough to be checked by hand.

hours = start-up + the first block's way + pairs / (nodes x rate x share of the time not lost) + the tail.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp

from gemel_ray.planning.rates import Node

NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)


@dataclass(frozen=True, kw_only=True)
class Troubles:
    """`between_failures`: mean hours until a node fails (0: never); `away`: seconds until its replacement
    links; `spread`: standard deviation of the logarithm of the time that blocks take."""

    between_failures: float = 200.0
    away: float = 300.0
    spread: float = 0.3


@dataclass(frozen=True)
class Cost:
    """The cost of a job on `nodes` nodes."""

    nodes: int
    hours: float
    money: float
    pairs_per_second: float
    lost: float  # share of the nodes' time


def cost(pairs: int, node: Node, nodes: int, troubles: Troubles) -> Cost:
    """The cost of the job. What a node has under way when it fails is done again."""
    under_way = node.block * node.overlap / node.rate  # seconds of a node's work
    lost = 0.0
    if troubles.between_failures:
        # The time away, and half of what is under way, once in between_failures hours.
        once = troubles.away + under_way / 2
        lost = once / (troubles.between_failures * 3600 + once)
    rate = nodes * node.rate * (1 - lost)
    block = min(node.block, pairs)
    way = block * (sum(1 / rate for rate in node.stations.values()) - 1 / node.rate)
    seconds = node.started + way + pairs / rate + _tail(pairs, node, nodes, troubles)
    return Cost(nodes, seconds / 3600, seconds / 3600 * nodes * node.price, rate, lost)


def _tail(pairs: int, node: Node, nodes: int, troubles: Troubles) -> float:
    """Seconds at the end in which nodes are idle while the last blocks run: on average half of a block's
    time, and all of the slowest block's excess."""
    block = node.block / node.rate
    if pairs <= node.block * nodes:  # fewer blocks than nodes: the job takes one block's time
        return max(0.0, block * exp(2 * troubles.spread) - pairs / (nodes * node.rate))
    return block * (0.5 + (exp(2 * troubles.spread) - 1) * min(1.0, nodes / 50))


def within(
    pairs: int, node: Node, troubles: Troubles, *, hours: float | None = None, budget: float | None = None
) -> Cost | None:
    """The fewest nodes that finish in `hours`, or the most that cost no more than `budget`; None where no
    number from 1 to 1,000 does."""
    costs = [cost(pairs, node, n, troubles) for n in range(1, NODES[-1] + 1)]
    if hours is not None:
        costs = [c for c in costs if c.hours <= hours]
        return costs[0] if costs else None
    fitting = [c for c in costs if budget is None or c.money <= budget]
    return fitting[-1] if fitting else None


def table(pairs: int, node: Node, troubles: Troubles, nodes: Iterable[int] = NODES) -> list[Cost]:
    """The cost of the job on each number of nodes."""
    return [cost(pairs, node, n, troubles) for n in nodes]
