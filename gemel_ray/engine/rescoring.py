"""What corrects the language model's scores of names: how it likes them unasked, and what examples say.

*Prior*: what the model gives a name before it has read anything, its own popularity. A neutral prompt,
the template with nothing in it, is asked for every node on a name's path. To subtract this prior from its
score corrects for names the model likes whatever it is asked (Zhao et al. 2021, "Calibrate Before Use";
Holtzman et al. 2021, "Surface Form Competition"). A node's answer is the same for all mentions and is kept:
once warm, priors cost nothing. At most one number a node of the tree is held.

*Neighbours*: what the demonstrations say by themselves, beside what the language model says having read them.
The two distributions over names are interpolated, as kNN-LM does it for tokens (Khandelwal et al., ICLR
2020): P(name) = weight * P(neighbours) + (1 - weight) * P(language model). A neighbour votes for its own
target, by how near its mention or picture is. Not in the paper: a small model copies less well than it
retrieves.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from gemel_ray.engine.search import Rollout
from gemel_ray.engine.work import Candidate, Path
from gemel_ray.knowledge.bank import Bank
from gemel_ray.knowledge.prefix_tree import NOWHERE, PrefixTree


class Prior:
    """`rollout` is the engine's behind the neutral prompt."""

    def __init__(self, tree: PrefixTree, rollout: Rollout, *, renormalise: bool) -> None:
        self._tree, self._rollout, self._renormalise = tree, rollout, renormalise
        self._known: dict[int, npt.NDArray[np.float32]] = {}

    async def corrected(
        self, candidates: Iterable[Candidate], weight: float, penalty: float
    ) -> list[Candidate]:
        """The candidates ranked anew, best first: a score is (log-probability - weight * prior) / length **
        penalty, a quotient of probabilities, so that it may stand above 0."""
        found = list(candidates)
        paths = [self._tree.path(c.leaf) for c in found]
        priors = await asyncio.gather(*map(self.of, paths))
        scores = [
            (c.log_prob - weight * prior) / len(path) ** penalty
            for c, path, prior in zip(found, paths, priors, strict=True)
        ]
        ranked = [replace(c, score=score) for c, score in zip(found, scores, strict=True)]
        return sorted(ranked, key=lambda c: -c.score)

    async def of(self, path: Path) -> float:
        """The log-probability of the name that `path` spells, without a question."""
        nodes = [self._tree.root]
        for token in path:
            nodes.append(self._tree.step(nodes[-1], token))
        steps = await asyncio.gather(*(self._at(path[:i], node) for i, node in enumerate(nodes[:-1])))
        first = (self._tree.children(node)[0] for node in nodes[:-1])
        return sum(float(s[n - f]) for s, n, f in zip(steps, nodes[1:], first, strict=True))

    async def _at(self, path: Path, node: int) -> npt.NDArray[np.float32]:
        """Log-probabilities of all children of `node`, float32 [children]. Two mentions that miss the same
        node ask both: rare, and cheaper than waiting for a caller that may leave."""
        if node not in self._known:
            _, tokens = self._tree.children(node)
            if self._renormalise and len(tokens) == 1:
                return np.zeros(1, np.float32)
            (step,) = await self._rollout(path, node, len(tokens))
            known = np.full(len(tokens), -np.inf, np.float32)
            known[np.searchsorted(tokens, step.tokens)] = step.log_probs
            self._known[node] = known
        return self._known[node]


class Neighbours:
    """Names, as leaves of the tree, of the bank's targets."""

    def __init__(
        self, tree: PrefixTree, bank: Bank, tokenize: Callable[[list[str]], list[list[int]]]
    ) -> None:
        self._tree, self._bank, self._tokenize = tree, bank, tokenize
        self._leaf_of: dict[str, int] = {}

    def shares(self, rows: Sequence[int], votes: Sequence[float]) -> dict[int, float]:
        """P(neighbours) of the leaves that `rows` of the bank vote for, each by its share of the `votes`
        (stages/retrieve.py). A target that is not a name has none."""
        shares: dict[int, float] = {}
        for row, vote in zip(rows, votes, strict=True):
            leaf = self.leaf(self._bank.target(row))
            if leaf != NOWHERE:
                shares[leaf] = shares.get(leaf, 0.0) + vote
        total = sum(shares.values())
        return {leaf: share / total for leaf, share in shares.items()} if total else {}

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
