"""Constrained search over one prompt: greedy and beam, made of the engine's rollouts (exact: exact.py).

The beam search gives the candidates and scores of Hugging Face's `generate(num_beams=n,
prefix_allowed_tokens_fn=...)` with `early_stopping=False`. It differs in what it costs: a rollout
reports every node of a greedy path in one request, so most of what later steps need is already
there, and a beam that leaves the path costs one more request with its prompt in the prefix cache.
Knows nothing of vllm, images or entities.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Protocol

from gemel_ray.engine.vllm_engine import Step
from gemel_ray.knowledge.prefix_tree import PrefixTree

Path = tuple[int, ...]


class Rollout(Protocol):
    """The engine behind one prompt: a Step for every token from `path`, which leads to `node`, to a name's
    end. Where `wide` says how many of the best tokens to report: a Step for the first token only."""

    async def __call__(self, path: Path, node: int, wide: int = 0) -> list[Step]: ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A finished name: its leaf, the sum of its tokens' log-probabilities, and what it is ranked by."""

    leaf: int
    log_prob: float
    score: float


class Expansions:
    """The children of prefix-tree nodes under one prompt, asked of the engine at most once."""

    def __init__(self, tree: PrefixTree, rollout: Rollout, *, renormalise: bool) -> None:
        self._tree, self._rollout, self._renormalise = tree, rollout, renormalise
        self._known: dict[Path, Step] = {}
        self.requests = 0
        self.cut = False  # whether a search had to end before it was sure

    async def at(self, path: Path, node: int) -> Step:
        """The best allowed tokens after `path`, which leads to `node`."""
        if path not in self._known:
            _, tokens = self._tree.children(node)
            if self._renormalise and len(tokens) == 1:  # certain: nothing to ask
                self._known[path] = Step((int(tokens[0]),), (0.0,))
            else:
                await self._ask(path, node)
        return self._known[path]

    async def wider(self, path: Path, node: int, wide: int) -> Step:
        """The `wide` best allowed tokens after `path`, more than `at` gave."""
        self.requests += 1
        (step,) = await self._rollout(path, node, wide)
        self._known[path] = step
        return step

    async def _ask(self, path: Path, node: int) -> None:
        self.requests += 1
        for step in await self._rollout(path, node):
            if not step.tokens:
                raise RuntimeError(f"the engine gave no token after {path}: its numbers are not finite")
            self._known.setdefault(path, step)
            path = (*path, step.tokens[0])


async def greedy(tree: PrefixTree, expansions: Expansions, penalty: float) -> list[Candidate]:
    """The name that the most probable token of every step spells: one candidate."""
    path: Path = ()
    node, total = tree.root, 0.0
    while not tree.is_leaf(node):
        step = await expansions.at(path, node)
        node = tree.step(node, step.tokens[0])
        path, total = (*path, step.tokens[0]), total + step.log_probs[0]
    return [Candidate(node, total, total / len(path) ** penalty)]


@dataclass(frozen=True, slots=True)
class _Beam:
    path: Path
    node: int
    log_prob: float


async def beam(tree: PrefixTree, expansions: Expansions, penalty: float, width: int) -> list[Candidate]:
    """At most `width` names, best first; fewer when the tree has fewer."""
    running = [_Beam((), tree.root, 0.0)]
    finished: list[Candidate] = []
    length = 0
    while running:
        steps = await asyncio.gather(*(expansions.at(b.path, b.node) for b in running))
        length += 1
        grown = [
            _Beam((*b.path, token), tree.step(b.node, token), b.log_prob + log_prob)
            for b, step in zip(running, steps, strict=True)
            for token, log_prob in zip(step.tokens, step.log_probs, strict=True)
        ]
        grown.sort(key=lambda b: -b.log_prob)
        # Twice the width, so that `width` beams can go on even if all the best have ended; but only
        # an ending among the best `width` counts: Hugging Face's rule.
        grown = grown[: 2 * width]
        finished += [
            Candidate(b.node, b.log_prob, b.log_prob / length**penalty)
            for b in grown[:width]
            if tree.is_leaf(b.node)
        ]
        finished = sorted(finished, key=lambda c: -c.score)[:width]
        running = [b for b in grown if not tree.is_leaf(b.node)][:width]
        if len(finished) == width and running:
            hoped = running[0].log_prob / length**penalty
            if hoped <= finished[-1].score:
                break
    return finished


def probabilities(candidates: list[Candidate]) -> list[float]:
    """Softmax of the scores of the kept candidates."""
    top = max(c.score for c in candidates)
    weights = [math.exp(c.score - top) for c in candidates]
    total = sum(weights)
    return [w / total for w in weights]
