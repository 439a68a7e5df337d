"""From names and entities with log-probabilities to an answer.

What the language model, the demonstrations and the ranker say of a mention is joined here; where the ranker
is sure, it answers alone.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gemel_ray.engine.search import Rollout
from gemel_ray.engine.work import Candidate, Path
from gemel_ray.errors import Mistake
from gemel_ray.knowledge.bank import Bank
from gemel_ray.knowledge.prefix_tree import NOWHERE, PrefixTree

if TYPE_CHECKING:
    from gemel_ray.knowledge.entities import Entities
    from gemel_ray.knowledge.workspace import Workspace
    from gemel_ray.stages.generate import Generate


def settled(stage: Generate, workspace: Workspace) -> Generate:
    """The stage with the threshold for the wanted `precision`. Raises Mistake if the workspace has no
    ranker."""
    if not stage.precision:
        return stage
    from gemel_ray.ranking.ranker import Ranker
    from gemel_ray.ranking.ranking import FILE

    if not workspace.ranks:
        raise Mistake(
            "generate.precision needs the workspace's ranker, and this workspace has none: build it with "
            "bank.ranker solved examples or more, or set generate.nil_threshold instead"
        )
    found = Ranker.load(workspace.ranking_folder / FILE).threshold(stage.precision)
    return replace(stage, precision=0.0, nil_threshold=found)


def by_ranker(asked: Generate, entities: Entities, row: dict[str, Any]) -> dict[str, Any]:
    """The columns of a row that has `likely` entities and their `chances`."""
    candidates = [
        {"entity": name, "entity_id": identity, "score": score}
        for (identity, name), score in zip(entities.of(row["likely"]), row["chances"], strict=True)
    ][: asked.beams]
    probability = math.exp(candidates[0]["score"])
    sure = probability >= asked.nil_threshold
    best = candidates[0] if sure else candidates[0] | {"entity": None, "entity_id": None}
    status = "linked" if sure else "nil"
    answer = {"probability": probability, "candidates": candidates, "status": status, "why": row["reasons"]}
    return best | answer


def reasons_of(reasons: str | None, said: float | None, chosen: float | None = None) -> str | None:
    """The ranker's reasons, and what the language model gives the answer (None: it did not name it), and by
    its choice among the ranker's best (None: there was none, or the answer is not among them)."""
    if not reasons:
        return None
    choice = "" if chosen is None else f", by its choice: {chosen:.0%}"
    return f"{reasons}; the answer by the language model: {_share(said)}{choice}"


def _share(said: float | None) -> str:
    return "not named" if said is None else f"{said:.0%}"


# What the ranker says joined to what the language model says, over the names that either knows.


_UNSAID = 3.0  # nats below the least likely name that one of both named: what it did not name is worth that


def joined(
    found: Sequence[Candidate], chances: dict[int, float], weight: float, count: int
) -> list[Candidate]:
    """The best `count` names, ranked by the weighted mean of both log-probabilities (logarithmic pooling),
    normalised over all of them. `chances`: the ranker's log-probabilities by leaf; `weight`: theirs."""
    said = {c.leaf: c.log_prob for c in found}
    least = min(said.values(), default=0.0) - _UNSAID
    rest = min(chances.values(), default=0.0) - _UNSAID
    pooled = {
        leaf: (1 - weight) * said.get(leaf, least) + weight * chances.get(leaf, rest)
        for leaf in said.keys() | chances.keys()
    }
    top = max(pooled.values())
    whole = top + math.log(sum(math.exp(p - top) for p in pooled.values()))
    ranked = sorted((-p, leaf) for leaf, p in pooled.items())[:count]
    return [Candidate(leaf, said.get(leaf, -math.inf), -p - whole) for p, leaf in ranked]


def likeliest(entities: Iterable[int], chances: Mapping[int, float]) -> list[int]:
    """Entities with one name, by descending probability of the ranker; those that are not its candidates
    follow in the given order."""
    return sorted(entities, key=lambda row: -chances.get(row, -math.inf))


# Corrections of the language model's scores of names: by their prior, and by the votes of examples.
#
# *Prior*: the model's score of a name without a question, which is high for popular names. It is the score
# after a neutral prompt, the empty template, for every node on the path of a name. Subtracting it from the
# score corrects for names that the model prefers in any context (Zhao et al. 2021, "Calibrate Before Use";
# Holtzman et al. 2021, "Surface Form Competition"). A node's scores are equal for all mentions and are
# stored: later they cost nothing. At most one number per node of the tree is stored.
#
# *Neighbours*: the votes of the demonstrations, besides their effect in the prompt. The two distributions
# over names are interpolated, as kNN-LM does for tokens (Khandelwal et al., ICLR 2020): P(name) = weight *
# P(neighbours) + (1 - weight) * P(language model). A neighbour votes for its target, weighted by the
# similarity of its mention or picture. Not in the paper: a small model copies less well than it retrieves.


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
    """The best `count` of both, ranked by the logarithm of P(name). A name that the search did not
    find has no P(language model): only its neighbours count."""
    by_model = {c.leaf: math.exp(c.log_prob) for c in found}
    both = {
        leaf: (1 - weight) * by_model.get(leaf, 0.0) + weight * shares.get(leaf, 0.0)
        for leaf in by_model | shares
    }
    if not any(both.values()):  # every one so unlikely that its probability is 0 in a float
        return list(found)
    log_prob = {c.leaf: c.log_prob for c in found}
    ranked = sorted((-p, leaf) for leaf, p in both.items() if p > 0)[:count]
    return [Candidate(leaf, log_prob.get(leaf, -math.inf), math.log(-p)) for p, leaf in ranked]
