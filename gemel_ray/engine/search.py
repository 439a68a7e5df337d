"""Constrained search over one prompt, made of the engine's rollouts: greedy, beam, exact.

The beam search gives the candidates and scores of Hugging Face's `generate(num_beams=n,
prefix_allowed_tokens_fn=...)` with `early_stopping=False`. Its cost is lower: a rollout
reports every node of a greedy path in one request, so later steps have most of what they need, and a
beam that leaves the path costs one more request with its prompt in the prefix cache.

Exact search gives the most probable names, best first. A name's log-probability only falls with every token,
so that of a path is a bound for all names that continue it. A rollout gives one whole name; the branches of
its path are stored with their bounds, and the best of them is rolled out in turn, until no bound reaches the
last name wanted (A* search without a heuristic; Meister et al. 2020, "Best-First Beam Search"). A peaked
model needs little more than the greedy path. Knows nothing of vLLM, pictures or entities."""

from __future__ import annotations

import asyncio
import heapq
import math
from dataclasses import dataclass
from typing import Protocol

from gemel_ray.engine.work import Candidate, Path, Step
from gemel_ray.knowledge.prefix_tree import PrefixTree

_WIDER = 8  # the factor by which the number of reported tokens grows if the best ones are not enough


class Rollout(Protocol):
    """The engine for one prompt: a Step for every token from `path`, which leads to `node`, to the end of a
    name. With `wide`, the number of best tokens to report: a Step for the first token only."""

    async def __call__(self, path: Path, node: int, wide: int = 0) -> list[Step]: ...


class Expansions:
    """The children of prefix-tree nodes under one prompt; the engine is asked for each at most once."""

    def __init__(self, tree: PrefixTree, rollout: Rollout, *, renormalise: bool) -> None:
        self._tree, self._rollout, self._renormalise = tree, rollout, renormalise
        self._known: dict[Path, Step] = {}
        self.requests = 0
        self.cut = False  # whether an exact search ended before its result was certain

    async def at(self, path: Path, node: int) -> Step:
        """The best allowed tokens after `path`, which leads to `node`."""
        if path not in self._known:
            _, tokens = self._tree.children(node)
            if self._renormalise and len(tokens) == 1:  # certain
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
        # Twice the width, so that `width` beams continue even if all the best have ended; but only an end
        # among the best `width` counts: Hugging Face's rule.
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


@dataclass(frozen=True, order=True, slots=True)
class _Part:
    """Unexplored names: all that continue `path`, or, if its best children are `known`, by the others.

    Ordered by `rank`: the negative of a bound of their scores.
    """

    rank: float
    path: Path
    node: int
    log_prob: float
    known: Step | None = None


async def exact(
    tree: PrefixTree, expansions: Expansions, penalty: float, count: int, requests: float = math.inf
) -> list[Candidate]:
    """The `count` names of the highest scores, best first; of equal ones, those that stand first in the tree.
    Fewer when the tree has fewer. After about `requests` requests the search ends with the best names so far,
    and sets `expansions.cut`."""
    search = _Exact(tree, expansions, penalty, count)
    while parts := search.next():
        if expansions.requests >= requests:
            expansions.cut = True
            break
        await asyncio.gather(*(search.explore(part) for part in parts))
    return search.finished


class _Exact:
    def __init__(self, tree: PrefixTree, expansions: Expansions, penalty: float, count: int) -> None:
        self.tree, self.expansions, self.penalty, self.count = tree, expansions, penalty, count
        self.finished: list[Candidate] = []
        self.open = [_Part(0.0, (), tree.root, 0.0)]

    def next(self) -> list[_Part]:
        """The parts to explore together: as many as there are uncertain names."""
        if not self.open:
            return []
        certain = sum(c.score > -self.open[0].rank for c in self.finished)
        parts: list[_Part] = []
        while self.open and len(parts) < self.count - certain and self._hopeful(self.open[0].rank):
            parts.append(heapq.heappop(self.open))
        return parts

    async def explore(self, part: _Part) -> None:
        """Finish one name of the part; the branches of its path become new parts."""
        path, node, log_prob = part.path, part.node, part.log_prob
        if part.known is not None:
            await self._widen(part, part.known)
            return
        while not self.tree.is_leaf(node):
            step = await self.expansions.at(path, node)
            best = step.tokens[0]
            self._branch(path, node, log_prob, step, without={best})
            path, log_prob = (*path, best), log_prob + step.log_probs[0]
            node = self.tree.step(node, best)
        self._finish(path, node, log_prob)

    async def _widen(self, part: _Part, known: Step) -> None:
        wide = min(_WIDER * len(known.tokens), len(self.tree.children(part.node)[1]))
        step = await self.expansions.wider(part.path, part.node, wide)
        if len(step.tokens) > len(known.tokens):  # else the others have no probability at all
            self._branch(part.path, part.node, part.log_prob, step, without=set(known.tokens))

    def _branch(self, path: Path, node: int, log_prob: float, step: Step, without: set[int]) -> None:
        """Store the children in `step`, except those explored (`without`), and the others as one part."""
        for token, more in zip(step.tokens, step.log_probs, strict=True):
            if token not in without:
                self._keep((*path, token), self.tree.step(node, token), log_prob + more)
        if len(step.tokens) < len(self.tree.children(node)[1]):
            least = self._bound(path, node, log_prob + step.log_probs[-1])
            self._push(_Part(-least, path, node, log_prob, step))

    def _keep(self, path: Path, node: int, log_prob: float) -> None:
        if self.tree.is_leaf(node):
            self._finish(path, node, log_prob)
        else:
            self._push(_Part(-self._bound(path, node, log_prob), path, node, log_prob))

    def _push(self, part: _Part) -> None:
        if self._hopeful(part.rank):
            heapq.heappush(self.open, part)

    def _bound(self, path: Path, node: int, log_prob: float) -> float:
        """A bound of the scores of names that continue `node`: as probable, and of the most favourable
        length."""
        shortest, longest = len(path) + 1, len(path) + self.tree.height(node)
        return max(log_prob / shortest**self.penalty, log_prob / longest**self.penalty)

    def _hopeful(self, rank: float) -> bool:
        least = self.finished[-1].score if len(self.finished) == self.count else -math.inf
        return -rank >= least

    def _finish(self, path: Path, leaf: int, log_prob: float) -> None:
        self.finished.append(Candidate(leaf, log_prob, log_prob / len(path) ** self.penalty))
        self.finished = sorted(self.finished, key=lambda c: (-c.score, c.leaf))[: self.count]
