"""Generate at work: one engine, and the search of every mention.

Asynchronous by row: each mention's search runs separately, prompts enter the engine while others
decode, across batches. Prompt embeddings are made here, in the engine's process, and never leave it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path as Folder
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gemel_ray.engine.admission import Beginnings, Room
from gemel_ray.engine.rounds import Search
from gemel_ray.engine.run import Engine
from gemel_ray.engine.search import Expansions, Rollout, beam, exact, greedy
from gemel_ray.engine.vllm.starting import EngineOptions
from gemel_ray.engine.work import (
    Candidate,
    Path,
    Prompt,
    PromptEmbeddings,
    RolloutOptions,
    Step,
    Usage,
    probabilities,
)
from gemel_ray.errors import WorkspaceError
from gemel_ray.knowledge.prefix_tree import NOWHERE, PrefixTree
from gemel_ray.records import Row
from gemel_ray.stage import Measures, Stage, Work, answer, settings_of
from gemel_ray.stages.answers import (
    Neighbours,
    Prior,
    by_ranker,
    interpolated,
    joined,
    likeliest,
    reasons_of,
    settled,
)
from gemel_ray.stages.assemble import query_text
from gemel_ray.stages.choosing import Choosing, LogProbs, reranked
from gemel_ray.stages.generate import Generate
from gemel_ray.stages.ranked import Ranked
from gemel_ray.stages.retrieve import Retrieve

if TYPE_CHECKING:
    from gemel_ray.knowledge.workspace import Workspace

Prefixes = Sequence[tuple[int, int]]  # that a prompt may continue, in the cache: see engine/vllm/holds.py
_BEGINNINGS = 256  # whose ids and pictures are kept
_FIELDS = ("entity", "entity_id", "score", "probability", "candidates", "why")


def start(stage: Generate, workspace: Workspace, line: Sequence[Stage] = ()) -> Work:
    """Start Generate, in the process that will use it; without an engine if the ranker alone answers."""
    stage, shown = settled(stage, workspace), settings_of(Retrieve, line)
    if stage.ranking == 1 and workspace.ranks and shown.ranking:
        return Ranked(stage, workspace)
    return Generating(stage, workspace, shown)


class _Under(NamedTuple):
    """The constraint of a rollout: a tree, its folder, and whether scores are over what it allows."""

    tree: PrefixTree
    folder: Folder
    renormalise: bool


class ModelAnswer(NamedTuple):
    """The language model's answer to a mention: the names that it writes, and, if it chooses among the
    ranker's best candidates, the log-probabilities of these."""

    names: list[Candidate]
    choice: LogProbs | None


class Generating(Work):
    """Generate in use. `shown`: the settings by which examples are chosen."""

    waits = True

    def __init__(
        self, stage: Generate, workspace: Workspace, shown: Retrieve, former: Generating | None = None
    ) -> None:
        self.stage, self.shown, self.tree, self.entities = stage, shown, workspace.tree, workspace.entities
        self.tree_folder = workspace.tree_folder
        options = _engine_options(stage, workspace.language_model, shown)
        self.engine: Engine = former.engine if former else Engine(options, workspace.tree.end_token)
        self.room: Room = former.room if former else Room(self.engine.cache)
        self.prompts: PromptEmbeddings = _prompts(workspace, self.engine, former.prompts if former else None)
        self.usage, self.mentions, self.ranked, self.cut = Usage(), 0, 0, 0
        self.beginnings = Beginnings(self._begin, self.engine.hold, self.engine.release)
        neutral = self.prompts(workspace.tokenize([query_text("", "")])[0], None)
        self._beginning = lru_cache(_BEGINNINGS)(lambda ids: self.prompts.tokens(ids, None))
        self.choosing: Choosing | None = (former and former.choosing) or _choosing(stage, workspace)
        self.neighbours = Neighbours(self.tree, workspace.bank, workspace.tokenize)
        self.prior = Prior(
            self.tree, self._continued(neutral, _reported(stage.beams)), renormalise=stage.score == "tree"
        )

    def renewed(self, workspace: Workspace) -> Work:
        return Generating(self.stage, workspace, self.shown, self)

    async def __call__(self, batch: pa.Table) -> pa.Table:
        rows = await asyncio.gather(*(self._link(row) for row in batch.to_pylist()))
        columns = {name: [row.get(name) for row in rows] for name in _FIELDS}
        table = answer(self.stage.writes, columns, [row.get("error") for row in rows])
        return table.append_column("status", pa.array([row.get("status") for row in rows], pa.string()))

    async def _link(self, row: Row) -> Row:
        self.mentions += 1
        try:
            asked = self.stage.asked(row["options"]) if row["options"] else self.stage
        except ValueError as reason:  # options that do not go together
            return {"error": str(reason)}
        if asked.ranking and row["chances"] and math.exp(row["chances"][0]) > asked.sure:
            self.ranked += 1
            return by_ranker(asked, self.entities, row)
        try:
            answer = await self.model_answer(asked, row)
        except ValueError as reason:  # this prompt is too long
            return {"error": str(reason)}
        return self._joined(asked, row, answer)

    async def model_answer(self, asked: Generate, row: Row) -> ModelAnswer:
        """The language model's answer to a mention. Raises ValueError for a prompt that is too long."""
        return ModelAnswer(*await asyncio.gather(self._named(asked, row), self._chosen(row)))

    def chances(self, row: Row, chosen: LogProbs | None, choice_weight: float) -> dict[int, float]:
        """The ranker's log-probabilities of entities, by row, with the language model's choice."""
        logs = row["chances"] or []
        if chosen is not None:
            logs = reranked(logs, chosen, choice_weight)
        return dict(zip(row["likely"] or (), logs, strict=True))

    def _joined(self, asked: Generate, row: Row, answer: ModelAnswer) -> Row:
        """The answer's columns."""
        found, chosen = answer
        chances = self.chances(row, chosen, asked.choice_weight)
        said = {candidate.leaf: math.exp(candidate.log_prob) for candidate in found}
        if asked.ranking and chances:
            found = joined(found, self.by_name(chances), asked.ranking, asked.beams)
        elif weight := asked.neighbour_weight:
            shares = self.neighbours.shares(row["nearest"], row["votes"])
            found = interpolated(found, shares, weight, asked.beams)
        picked = {} if chosen is None else dict(zip(row["likely"], np.exp(chosen).tolist(), strict=False))
        best = likeliest(self.tree.entities(found[0].leaf).tolist(), chances)[0]
        why = reasons_of(row["reasons"], said.get(found[0].leaf), picked.get(best))
        return self._row(found, asked.nil_threshold, chances) | {"why": why}

    async def _named(self, asked: Generate, row: Row) -> list[Candidate]:
        """The names that the language model writes, and others that it judges."""
        names = self._likely(asked, row)
        found = await self._in_rounds(asked, row, names)
        if not found:
            found = await self._by_rollouts(asked, row)
            found += await self._judged(asked, row, names - {candidate.leaf for candidate in found})
        if asked.prior_weight:
            found = await self.prior.corrected(found, asked.prior_weight, asked.length_penalty)
        return found

    async def _chosen(self, row: Row) -> LogProbs | None:
        """Log-probabilities of the ranker's best candidates by the model's choice among them."""
        if row["choice"] is None or self.choosing is None:
            return None
        begins, choosing = row["prompt"][: row["beginning"]], self.choosing
        search = Search(choosing.tree, choosing.most, 0.0, True)
        beginning, rest = self._beginning(tuple(begins)), self.prompts.tokens(row["choice"], _feature(row))
        if self.engine.takes(search, len(beginning), len(rest)):
            found = await self.engine.beams(search, beginning, rest, self.usage)
        else:
            found = await self._letters(choosing, row, begins)
        said = {candidate.leaf: candidate.log_prob for candidate in found}
        return choosing.log_probs(said, min(choosing.most, len(row["likely"])))

    async def _letters(self, choosing: Choosing, row: Row, begins: list[int]) -> list[Candidate]:
        """The choice by rollouts."""
        tokens = len(row["choice"]) + self.stage.block
        async with self.room.taken(tokens, (), tuple(begins)), self.beginnings.kept(tuple(begins)) as after:
            prompt = self.prompts([*begins, *row["choice"]], _feature(row))
            under = _Under(choosing.tree, choosing.folder, True)
            rollout = self._continued(prompt, _reported(choosing.most), after=after, under=under)
            expansions = Expansions(choosing.tree, rollout, renormalise=True)
            return await beam(choosing.tree, expansions, 0.0, choosing.most)

    def by_name(self, chances: dict[int, float]) -> dict[int, float]:
        """The ranker's log-probabilities of entities, as those of their names, by leaf."""
        names: dict[int, float] = {}
        for (_, name), log_prob in zip(self.entities.of(chances), chances.values(), strict=True):
            if (leaf := self.neighbours.leaf(name)) != NOWHERE:
                names[leaf] = float(np.logaddexp(names.get(leaf, -np.inf), log_prob))
        return names

    def _likely(self, asked: Generate, row: Row) -> set[int]:
        """The leaves of the ranker's candidates that are to be judged, written or not."""
        if asked.judged == 1 or not asked.ranking:
            return set()
        pairs = zip(row["likely"] or (), row["chances"] or (), strict=True)
        return set(self.by_name({entity: log for entity, log in pairs if math.exp(log) >= asked.judged}))

    async def _in_rounds(self, asked: Generate, row: Row, names: Collection[int] = ()) -> list[Candidate]:
        """Search in lock step with all other mentions, and judge `names`; empty if that is not possible.
        Exact search has no beams. Prompts without a shared set have common beginnings only by chance, which
        vLLM's cache finds."""
        prompt, begins = row["prompt"], row["beginning"]
        if asked.search != "beam" or (row["shots"] and not begins):
            return []
        search = Search(self.tree, asked.beams, asked.length_penalty, asked.score == "tree")
        beginning = self._beginning(tuple(prompt[:begins]))
        rest = self.prompts.tokens(prompt[begins:], _feature(row))
        if not self.engine.takes(search, len(beginning), len(rest)):
            return []
        judged = tuple(sorted(names, key=self.tree.path))  # those that begin alike are judged together
        return await self.engine.beams(search, beginning, rest, self.usage, judged)

    async def _by_rollouts(self, asked: Generate, row: Row) -> list[Candidate]:
        async with self._rollouts(asked, row) as rollout:
            tree, penalty = self.tree, asked.length_penalty
            expansions = Expansions(tree, rollout, renormalise=asked.score == "tree")
            if asked.search == "exact":
                found = await exact(tree, expansions, penalty, asked.beams, asked.exact_requests)
                self.cut += expansions.cut
                return found
            if asked.beams == 1:
                return await greedy(tree, expansions, penalty)
            return await beam(tree, expansions, penalty, asked.beams)

    async def _judged(self, asked: Generate, row: Row, names: Collection[int]) -> list[Candidate]:
        """The language model's scores of these names, by rollouts."""
        if not names:
            return []
        leaves = sorted(names)
        paths = [self.tree.path(leaf) for leaf in leaves]
        async with self._rollouts(asked, row) as rollout:
            judge = Prior(self.tree, rollout, renormalise=asked.score == "tree")
            totals = await asyncio.gather(*map(judge.of, paths))
        return [
            Candidate(leaf, total, total / len(path) ** asked.length_penalty)
            for leaf, path, total in zip(leaves, paths, totals, strict=True)
        ]

    @asynccontextmanager
    async def _rollouts(self, asked: Generate, row: Row) -> AsyncIterator[Rollout]:
        """Rollouts that continue the row's prompt, which is kept in the cache until the end."""
        prompt, hold = row["prompt"], self.engine.hold()
        beginning = tuple(prompt[: row["beginning"]])
        # The rest of the prompt, a picture's few vectors counted as one token each, and the tokens of beams.
        tokens = len(prompt) - len(beginning) + asked.beams * (self.tree.depth + asked.block)
        room = self.room.taken(tokens, tuple(row["shots"]), beginning)
        try:
            async with room, self.beginnings.kept(beginning) as prefixes:
                whole = self.prompts(prompt, _feature(row))
                yield self._continued(whole, _reported(asked.beams), hold, prefixes)
        finally:
            self.engine.release(hold)

    def _continued(
        self, prompt: Prompt, reported: int, hold: int = 0, after: Prefixes = (), under: _Under | None = None
    ) -> Rollout:
        """A rollout function that continues this prompt `under` a tree, by default that of the names, and
        reports `reported` of the best tokens per step. The first request is kept under `hold`, and continues
        one of the prefixes `after`; later requests continue the first."""
        tree, folder, renormalise = under or _Under(self.tree, self.tree_folder, self.stage.score == "tree")
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

    def _row(self, found: list[Candidate], nil_threshold: float, chances: dict[int, float]) -> Row:
        """The answer's columns. A name of several entities is there once for each of them, those first
        that the ranker gives better `chances`, else in the knowledge base's order; the probability is the
        name's."""
        candidates = [
            {"entity": name, "entity_id": identity, "score": candidate.score}
            for candidate in found
            for identity, name in self.entities.of(
                likeliest(self.tree.entities(candidate.leaf).tolist(), chances)
            )
        ]
        probability = probabilities(found)[0]
        sure = probability >= nil_threshold
        best = candidates[0] if sure else {"entity": None, "entity_id": None}
        return {
            **best,
            "score": found[0].score,
            "probability": probability,
            "candidates": candidates,
            "status": "linked" if sure else "nil",
        }

    def retire(self) -> None:
        self.engine.retire(self.tree)

    def check(self) -> None:
        self.engine.check()

    def close(self) -> None:
        self.engine.close()

    def measures(self) -> Measures:
        counts = {"mentions": self.mentions, "ranked": self.ranked, "cut": self.cut}
        counts["shared"] = self.room.shared
        return counts | asdict(self.usage) | self.engine.measures()


def _choosing(stage: Generate, workspace: Workspace) -> Choosing | None:
    """The choice among the ranker's best candidates; None if the language model is not asked to choose."""
    if not stage.rerank or not 0 < stage.ranking < 1 or not workspace.ranks:
        return None
    return Choosing(stage.rerank, workspace.tokenize, workspace.tree.end_token)


def _feature(row: Row) -> npt.NDArray[np.float32] | None:
    """The feature of the row's picture."""
    return None if row["image_vector"] is None else np.asarray(row["image_vector"], np.float32)


def _reported(beams: int) -> int:
    """The number of tokens reported per step: at least twice the beam width."""
    return max(16, 2 * beams)


def _prompts(workspace: Workspace, engine: Engine, former: PromptEmbeddings | None) -> PromptEmbeddings:
    """The prompts of this engine. Prefixes that another version has computed for the same pictures are
    reused."""
    mapper = workspace.mapper()
    if mapper is not None and mapper.width != engine.width:
        raise WorkspaceError(
            f"{workspace.mapper_file} writes vectors of {mapper.width}, but the language model's have "
            f"{engine.width}: train a mapper for this model (gemel-ray train)"
        )
    return PromptEmbeddings(engine.embed, mapper, workspace.bank, former)


def _engine_options(stage: Generate, model: str, shown: Retrieve) -> EngineOptions:
    """The stage's fields that are options of the engine. Rounds that would not be used take no cache."""
    options = {k: v for k, v in asdict(stage).items() if k in EngineOptions.__dataclass_fields__}
    if stage.search == "exact" or (shown.demonstrations and not shown.shared_sets):
        options["rounds"] = "never"
    return EngineOptions(model=model, **options)
