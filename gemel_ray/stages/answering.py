"""Answers to mentions, from what the language model, the workspace's ranker and the demonstrations' votes say
of names. Ranker and votes can answer alone: then no engine is started."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gemel_ray.engine.work import Candidate, probabilities
from gemel_ray.errors import Mistake
from gemel_ray.knowledge.bank import Bank
from gemel_ray.knowledge.entities import Entities
from gemel_ray.knowledge.prefix_tree import NOWHERE, PrefixTree, Tokenize
from gemel_ray.records import Row
from gemel_ray.stage import ERROR, STATUS, Measures, Work
from gemel_ray.stages.generate import Generate
from gemel_ray.stages.retrieve import Retrieve

if TYPE_CHECKING:
    from gemel_ray.knowledge.workspace import Workspace

_NO_CHANCES: Mapping[int, float] = {}


def has_ranker(stage: Generate, shown: Retrieve, workspace: Workspace) -> bool:
    """Whether the workspace's ranker has a say, instead of the demonstrations' votes."""
    return stage.ranking > 0 and shown.ranking > 0 and workspace.ranks


def asks_model(stage: Generate, shown: Retrieve, workspace: Workspace) -> bool:
    """Whether the language model has a say: not where the ranker, or else the votes, have all the weight."""
    return (stage.ranking if has_ranker(stage, shown, workspace) else stage.neighbour_weight) < 1


class WithoutModel(Work):
    """Links by the ranker's candidates (`ranker`), else by the demonstrations' votes, without an engine."""

    def __init__(self, stage: Generate, workspace: Workspace, *, ranker: bool) -> None:
        self.stage, self.ranker, self.mentions = stage, ranker, 0
        self.names = Names.of(workspace)

    def renewed(self, workspace: Workspace) -> Work:
        return WithoutModel(self.stage, workspace, ranker=self.ranker)

    def __call__(self, batch: pa.Table) -> pa.Table:
        read = batch.select(["nearest", "votes", "likely", "chances", "reasons", "options"])
        rows = [self._link(row) for row in read.to_pylist()]
        self.mentions += len(rows)
        return links(self.stage, rows)

    def _link(self, row: Row) -> Row:
        try:
            asked = with_options(self.stage, row["options"])
        except Mistake as reason:  # options that do not go together
            return {"error": str(reason)}
        if self.ranker and row["likely"]:
            return self.names.answer_by_ranker(asked, row)
        if not self.ranker and (shares := self.names.shares(row["nearest"], row["votes"])):
            found = interpolated([], shares, 1.0, asked.beams)
            return self.names.answers([Answer(found, asked.nil_threshold)])[0]
        return {"status": "nil", "candidates": []}

    def measures(self) -> Measures:
        return {"mentions": self.mentions}


def with_options(stage: Generate, options: Row | None) -> Generate:
    """The stage as a row's document wants it. Raises Mistake for options that do not go together."""
    if not options:
        return stage
    names = {"candidates": "beams", "search": "search", "nil_threshold": "nil_threshold"}
    return replace(stage, **{names[k]: v for k, v in options.items() if k in names and v is not None})


def links(stage: Generate, rows: Sequence[Row]) -> pa.Table:
    """The stage's columns, with `error` and `status`."""
    return pa.Table.from_pylist(rows, stage.writes.append(ERROR).append(STATUS))


class Answer(NamedTuple):
    """Names for a mention, best first; the ranker's `chances` decide among the entities of one name."""

    found: Sequence[Candidate]
    nil_threshold: float
    chances: Mapping[int, float] = _NO_CHANCES
    why: str | None = None


class Names:
    """Names as answers: their leaves in the prefix tree, and the entities that have them."""

    def __init__(self, tree: PrefixTree, entities: Entities, bank: Bank, tokenize: Tokenize) -> None:
        self.tree, self.entities, self._bank, self._tokenize = tree, entities, bank, tokenize
        # The leaves of the bank's targets, plus 2; 0 until one is needed, so that its page takes no memory.
        self._of_targets = np.zeros(len(bank), np.int32)

    @cached_property
    def _of_entities(self) -> npt.NDArray[np.int32]:
        """The leaves of all entities, by row."""
        return self.tree.leaves()

    @classmethod
    def of(cls, workspace: Workspace) -> Names:
        """The names of this version of the knowledge."""
        return cls(workspace.tree, workspace.entities, workspace.bank, workspace.tokenize)

    def leaf(self, name: str) -> int:
        """The leaf of a name, NOWHERE for what is not one."""
        return self.tree.walk([*self._tokenize([name])[0], self.tree.end_token])

    def _of_target(self, row: int) -> int:
        """The leaf of the target of a row of the bank."""
        if not self._of_targets[row]:
            self._of_targets[row] = self.leaf(self._bank.target(row)) + 2
        return int(self._of_targets[row]) - 2

    def shares(self, rows: Sequence[int], votes: Sequence[float]) -> dict[int, float]:
        """P(neighbours) of the leaves that `rows` of the bank vote for, each by its share of the `votes`
        (stages/retrieve.py). A target that is not a name has none."""
        shares: dict[int, float] = {}
        for row, vote in zip(rows, votes, strict=True):
            if (leaf := self._of_target(row)) != NOWHERE:
                shares[leaf] = shares.get(leaf, 0.0) + vote
        total = sum(shares.values())
        return {leaf: share / total for leaf, share in shares.items()} if total else {}

    def chances(self, of_entities: Mapping[int, float]) -> dict[int, float]:
        """The ranker's log-probabilities of entities, by row, as those of their names, by leaf."""
        names: dict[int, float] = {}
        leaves = self._of_entities[np.fromiter(of_entities, np.int64, len(of_entities))].tolist()
        for leaf, log_prob in zip(leaves, of_entities.values(), strict=True):
            names[leaf] = float(np.logaddexp(names[leaf], log_prob)) if leaf in names else log_prob
        return names

    def best_bearer(self, leaf: int, chances: Mapping[int, float]) -> int:
        """The entity that comes first of those with a name."""
        return _by_chance(self.tree.entities([leaf])[0], chances)[0]

    def answers(self, answers: Sequence[Answer]) -> list[Row]:
        """The columns of each answer. A name of several entities is there once for each of them; the
        probability is the name's."""
        bearers = iter(
            self.tree.entities([candidate.leaf for answer in answers for candidate in answer.found])
        )
        return [self._row(answer, list(islice(bearers, len(answer.found)))) for answer in answers]

    def _row(self, answer: Answer, bearers: Sequence[list[int]]) -> Row:
        candidates = [
            {"entity": name, "entity_id": identity, "score": candidate.score}
            for candidate, rows in zip(answer.found, bearers, strict=True)
            for identity, name in self.entities.of(_by_chance(rows, answer.chances))
        ]
        columns = _columns(candidates, probabilities(answer.found)[0], answer.nil_threshold)
        return columns | {"why": answer.why}

    def answer_by_ranker(self, asked: Generate, row: Row) -> Row:
        """The answer's columns, from the `likely` entities of the row and their `chances`."""
        best = zip(self.entities.of(row["likely"][: asked.beams]), row["chances"], strict=False)
        candidates = [
            {"entity": name, "entity_id": identity, "score": score} for (identity, name), score in best
        ]
        probability = math.exp(candidates[0]["score"])
        return _columns(candidates, probability, asked.nil_threshold) | {"why": row["reasons"]}


def _by_chance(bearers: list[int], chances: Mapping[int, float]) -> list[int]:
    """The entities with one name by descending `chances` of the ranker; those that are not its candidates
    follow in the knowledge base's order."""
    return sorted(bearers, key=lambda row: -chances.get(row, -math.inf))


def _columns(candidates: list[Row], probability: float, nil_threshold: float) -> Row:
    is_linked = probability >= nil_threshold
    best = candidates[0] if is_linked else candidates[0] | {"entity": None, "entity_id": None}
    status = "linked" if is_linked else "nil"
    return best | {"probability": probability, "candidates": candidates, "status": status}


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
            "more solved examples, or set generate.nil_threshold instead"
        )
    found = Ranker.load(workspace.ranking_folder / FILE).threshold(stage.precision)
    return replace(stage, precision=0.0, nil_threshold=found)


# Names scored by the language model joined with the ranker's, or, without a ranker, with the demonstrations'.
#
# The votes of the demonstrations count besides their effect in the prompt. The two distributions over names
# are interpolated, as kNN-LM does for tokens (Khandelwal et al., ICLR 2020): P(name) = weight * P(neighbours)
# + (1 - weight) * P(language model). A neighbour votes for its target, weighted by the similarity of its
# mention or picture. Not in the paper: a small model copies less well than it retrieves.


_UNSAID = 3.0  # nats below the least likely name of either: the score of a name that it did not give


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


def reasons_of(reasons: str, said: float | None, chosen: float | None = None) -> str:
    """The ranker's reasons, and what the language model gives the answer (None: it did not name it), and by
    its choice among the ranker's best (None: there was none, or the answer is not among them)."""
    choice = "" if chosen is None else f", by its choice: {chosen:.0%}"
    return f"{reasons}; the answer by the language model: {_share(said)}{choice}"


def _share(said: float | None) -> str:
    return "not named" if said is None else f"{said:.0%}"
