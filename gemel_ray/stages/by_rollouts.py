"""Searches by rollouts, requests of vLLM: exact search, the prior, and all that the rounds do not take.

*Prior*: the model's score of a name without a question, which is high for popular names. It is the score
after a neutral prompt, the empty template, for every node on the path of a name. Subtracting it from the
score corrects for names that the model prefers in any context (Zhao et al. 2021, "Calibrate Before Use";
Holtzman et al. 2021, "Surface Form Competition"). A node's scores are equal for all mentions and are
stored: later they cost nothing. At most one number per node of the tree is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path as Folder
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from gemel_ray.engine.admission import Beginnings, Room
from gemel_ray.engine.run import Engine
from gemel_ray.engine.search import Expansions, Rollout, beam, exact, greedy
from gemel_ray.engine.work import Candidate, Path, Prompt, PromptEmbeddings, RolloutOptions, Step, Usage
from gemel_ray.knowledge.prefix_tree import PrefixTree
from gemel_ray.records import Row
from gemel_ray.stages.assemble import query_text
from gemel_ray.stages.choosing import Choosing
from gemel_ray.stages.generate import Generate

if TYPE_CHECKING:
    from gemel_ray.knowledge.workspace import Workspace

Prefixes = Sequence[tuple[int, int]]  # that a prompt may continue, in the cache: see engine/vllm/holds.py


class _Under(NamedTuple):
    """The constraint of a rollout: a tree, its folder, and whether scores are over what it allows."""

    tree: PrefixTree
    folder: Folder
    renormalise: bool


class ByRollouts:
    """The searches of one version's names. `cut`: exact searches that ended unproven."""

    def __init__(
        self, stage: Generate, workspace: Workspace, engine: Engine, prompts: PromptEmbeddings, usage: Usage,
        room: Room,
    ) -> None:  # fmt: skip
        self.stage, self.tree, self.tree_folder = stage, workspace.tree, workspace.tree_folder
        self.engine, self.prompts, self.usage, self.room, self.cut = engine, prompts, usage, room, 0
        self.beginnings = Beginnings(self._begin, engine.hold, engine.release)
        neutral = prompts(workspace.tokenize([query_text("", "")])[0], None)
        unasked = self._continued(neutral, _reported(stage.beams), self._names(stage))
        self.prior = Prior(self.tree, unasked, renormalise=stage.score == "tree")

    async def names(self, asked: Generate, row: Row) -> list[Candidate]:
        """The names that the search wanted finds."""
        async with self._kept(asked, row) as rollout:
            tree, penalty = self.tree, asked.length_penalty
            expansions = Expansions(tree, rollout, renormalise=asked.score == "tree")
            if asked.search == "exact":
                found = await exact(tree, expansions, penalty, asked.beams, asked.exact_requests)
                self.cut += expansions.cut
                return found
            if asked.beams == 1:
                return await greedy(tree, expansions, penalty)
            return await beam(tree, expansions, penalty, asked.beams)

    async def judged(self, asked: Generate, row: Row, names: Collection[int]) -> list[Candidate]:
        """The language model's scores of these names, by rollouts."""
        if not names:
            return []
        leaves = sorted(names)
        paths = [self.tree.path(leaf) for leaf in leaves]
        async with self._kept(asked, row) as rollout:
            judge = Prior(self.tree, rollout, renormalise=asked.score == "tree")
            totals = await asyncio.gather(*map(judge.of, paths))
        return [
            Candidate(leaf, total, total / len(path) ** asked.length_penalty)
            for leaf, path, total in zip(leaves, paths, totals, strict=True)
        ]

    async def letters(self, choosing: Choosing, row: Row) -> list[Candidate]:
        """The choice among letters."""
        beginning, tokens = _beginning(row), len(row["choice"]) + self.stage.block
        async with self.room.taken(tokens, (), beginning), self.beginnings.kept(beginning) as after:
            prompt = self.prompts([*beginning, *row["choice"]], row["image_vector"])
            under = _Under(choosing.tree, choosing.folder, True)
            rollout = self._continued(prompt, _reported(choosing.most), under, after=after)
            expansions = Expansions(choosing.tree, rollout, renormalise=True)
            return await beam(choosing.tree, expansions, 0.0, choosing.most)

    @asynccontextmanager
    async def _kept(self, asked: Generate, row: Row) -> AsyncIterator[Rollout]:
        """Rollouts that continue the row's prompt, which is kept in the cache until the end."""
        prompt, hold = row["prompt"], self.engine.hold()
        beginning = _beginning(row)
        # The rest of the prompt, a picture's few vectors counted as one token each, and the tokens of beams.
        tokens = len(prompt) - len(beginning) + asked.beams * (self.tree.depth + asked.block)
        room = self.room.taken(tokens, tuple(row["shots"]), beginning)
        try:
            async with room, self.beginnings.kept(beginning) as prefixes:
                whole = self.prompts(prompt, row["image_vector"])
                yield self._continued(whole, _reported(asked.beams), self._names(asked), hold, prefixes)
        finally:
            self.engine.release(hold)

    def _names(self, asked: Generate) -> _Under:
        return _Under(self.tree, self.tree_folder, asked.score == "tree")

    def _continued(
        self, prompt: Prompt, reported: int, under: _Under, hold: int = 0, after: Prefixes = ()
    ) -> Rollout:
        """A rollout function that continues this prompt `under` a tree, and
        reports `reported` of the best tokens per step. The first request is kept under `hold`, and continues
        one of the prefixes `after`; later requests continue the first."""
        tree, folder, renormalise = under
        kept = [(hold, prompt.base)] if hold else []

        async def rollout(path: Path, node: int, wide: int = 0) -> list[Step]:
            asked = RolloutOptions(
                tree=folder,
                node=node,
                limit=1 if wide else tree.depth - len(path),
                wide=wide or reported,
                renormalise=renormalise,
                keep=hold,
                after=[*kept, *after],
            )
            return await self.engine.rollout(self.prompts.extended(prompt, path), asked, self.usage)

        return rollout

    async def _begin(self, ids: tuple[int, ...], hold: int) -> int:
        """Compute a common beginning of prompts, and keep it under `hold`; its length in tokens."""
        prompt = self.prompts(ids, None)
        await self.engine.rollout(
            prompt, RolloutOptions(tree=self.tree_folder, node=0, limit=1, wide=1, keep=hold), self.usage
        )
        return prompt.base


class Prior:
    """Scores of names without a question. `rollout` continues the neutral prompt."""

    def __init__(self, tree: PrefixTree, rollout: Rollout, *, renormalise: bool) -> None:
        self._tree, self._rollout, self._renormalise = tree, rollout, renormalise
        self._known: dict[int, npt.NDArray[np.float32]] = {}

    async def corrected(
        self, candidates: Iterable[Candidate], weight: float, penalty: float
    ) -> list[Candidate]:
        """The candidates with corrected scores, best first: (log-probability - weight * prior) / length **
        penalty, the logarithm of a quotient of probabilities, so it may be above 0."""
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


def _beginning(row: Row) -> tuple[int, ...]:
    """The ids of the row's shared beginning."""
    return tuple(np.asarray(row["prompt"][: row["beginning"]]).tolist())


def _reported(beams: int) -> int:
    """The number of tokens reported per step: at least twice the beam width."""
    return max(16, 2 * beams)
