"""What the demonstrations say by themselves, beside what the language model says having read them.

The two distributions over names are interpolated, as kNN-LM does it for tokens (Khandelwal et al., ICLR
2020): P(name) = weight * P(neighbours) + (1 - weight) * P(language model). A neighbour votes for its own
target, by how near its mention is. Not in the paper: a small model copies less well than it retrieves. Knows
nothing of vllm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from gemel_ray.engine.search import Candidate
from gemel_ray.knowledge.bank import Bank
from gemel_ray.knowledge.prefix_tree import NOWHERE, PrefixTree

TEMPERATURE = 0.02  # of the cosines: a neighbour that is nearer by as much counts for e times


class Neighbours:
    """Names, as leaves of the tree, of the bank's targets."""

    def __init__(
        self, tree: PrefixTree, bank: Bank, tokenize: Callable[[list[str]], list[list[int]]]
    ) -> None:
        self._tree, self._bank, self._tokenize = tree, bank, tokenize
        self._leaf_of: dict[str, int] = {}

    def shares(self, rows: Sequence[int], cosines: Sequence[float]) -> dict[int, float]:
        """P(neighbours) of the leaves that `rows` of the bank vote for. A target that is no name has none."""
        votes: dict[int, float] = {}
        for row, cosine in zip(rows, cosines, strict=True):
            leaf = self.leaf(self._bank.target(row))
            if leaf != NOWHERE:
                votes[leaf] = votes.get(leaf, 0.0) + math.exp((cosine - 1) / TEMPERATURE)
        total = sum(votes.values())
        return {leaf: vote / total for leaf, vote in votes.items()} if total else {}

    def leaf(self, target: str) -> int:
        """The leaf of a name, NOWHERE for what is not one."""
        if target not in self._leaf_of:
            path = [*self._tokenize([target])[0], self._tree.end_token]
            self._leaf_of[target] = self._tree.walk(path)
        return self._leaf_of[target]


def interpolated(
    found: Sequence[Candidate], shares: dict[int, float], weight: float, count: int
) -> list[Candidate]:
    """The best `count` of both, ranked by the logarithm of P(name). What the search did not find has no
    P(language model): it stands by its neighbours alone."""
    said = {c.leaf: math.exp(c.log_prob) for c in found}
    both = {
        leaf: (1 - weight) * said.get(leaf, 0.0) + weight * shares.get(leaf, 0.0) for leaf in said | shares
    }
    if not any(both.values()):  # every one so unlikely that its probability is 0 in a float
        return list(found)
    log_prob = {c.leaf: c.log_prob for c in found}
    ranked = sorted((-p, leaf) for leaf, p in both.items() if p > 0)[:count]
    return [Candidate(leaf, log_prob.get(leaf, -math.inf), math.log(-p)) for p, leaf in ranked]
