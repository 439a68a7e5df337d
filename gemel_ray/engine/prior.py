"""What the language model gives a name before it has read anything: the name's own popularity.

A neutral prompt, the template with nothing in it, is asked for every node on a name's path. Subtracting
this prior from a name's score corrects for names the model likes whatever it is asked (Zhao et al. 2021,
"Calibrate Before Use"; Holtzman et al. 2021, "Surface Form Competition"). A node's answer is the same for
all mentions and is kept: once warm, priors cost nothing. At most one number a node of the tree is held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from gemel_ray.engine.search import Candidate, Path, Rollout
from gemel_ray.knowledge.prefix_tree import PrefixTree


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
