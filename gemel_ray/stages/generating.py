"""Generate at work: one engine, and the search of every mention.

Asynchronous by row: each mention's search runs separately, prompts enter the engine while others
decode, across batches. Prompt embeddings are made here, in the engine's process, and never leave it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gemel_ray.engine.admission import Room
from gemel_ray.engine.rounds import Search
from gemel_ray.engine.run import Engine
from gemel_ray.engine.vllm.starting import EngineOptions
from gemel_ray.engine.work import Candidate, PromptEmbeddings, TokenPrompt, Usage
from gemel_ray.errors import WorkspaceError
from gemel_ray.records import Row
from gemel_ray.stage import Measures, Stage, Work, arrays, settings_of
from gemel_ray.stages.answering import (
    Answer,
    Names,
    WithoutModel,
    asks_model,
    has_ranker,
    interpolated,
    joined,
    links,
    reasons_of,
    settled,
    with_options,
)
from gemel_ray.stages.by_rollouts import ByRollouts
from gemel_ray.stages.choosing import Choosing, LogProbs, reranked
from gemel_ray.stages.generate import Generate
from gemel_ray.stages.retrieve import Retrieve

if TYPE_CHECKING:
    from gemel_ray.knowledge.workspace import Workspace

_BEGINNINGS = 256  # whose ids and pictures are kept
_ARRAYS = ["prompt", "choice", "image_vector"]


def start(stage: Generate, workspace: Workspace, line: Sequence[Stage] = ()) -> Work:
    """Start Generate, in the process that will use it; without an engine if no language model is asked."""
    stage, shown = settled(stage, workspace), settings_of(Retrieve, line)
    if asks_model(stage, shown, workspace):
        return Generating(stage, workspace, shown)
    return WithoutModel(stage, workspace, ranker=has_ranker(stage, shown, workspace))


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
        self.stage, self.shown, self.tree, self.names = stage, shown, workspace.tree, Names.of(workspace)
        self.tree_folder = workspace.tree_folder
        options = _engine_options(stage, workspace.language_model, shown)
        self.engine: Engine = former.engine if former else Engine(options, workspace.tree.end_token)
        try:
            self._open(workspace, former)
        except BaseException:
            if former is None:
                self.engine.close()  # nobody else will
            raise

    def _open(self, workspace: Workspace, former: Generating | None) -> None:
        """Make what answers beside the engine."""
        stage, before = self.stage, former.prompts if former else None
        self.prompts: PromptEmbeddings = _prompts(workspace, self.engine, before)
        self.usage, self.mentions, self.ranked = Usage(), 0, 0
        room: Room = former.rollouts.room if former else Room(self.engine.cache)
        self.rollouts: ByRollouts = ByRollouts(stage, workspace, self.engine, self.prompts, self.usage, room)
        self._begun = lru_cache(_BEGINNINGS)(lambda ids: self.prompts.tokens(np.frombuffer(ids, "i4"), None))
        self.choosing: Choosing | None = (former and former.choosing) or _choosing(stage, workspace)

    def renewed(self, workspace: Workspace) -> Work:
        return Generating(self.stage, workspace, self.shown, self)

    async def __call__(self, batch: pa.Table) -> pa.Table:
        return links(self.stage, await self.linked(self._rows(batch)))

    async def linked(self, rows: Iterable[Row]) -> list[Row]:
        """The answers' columns."""
        made = await asyncio.gather(*map(self._link, rows))
        answers = iter(self.names.answers([answer for answer in made if isinstance(answer, Answer)]))
        return [next(answers) if isinstance(one, Answer) else one for one in made]

    def _rows(self, batch: pa.Table) -> list[Row]:
        """The rows, with arrays instead of lists of many numbers. Prefixes of their pictures are computed
        together."""
        rows: list[Row] = batch.drop_columns(_ARRAYS).to_pylist()
        columns = [arrays(batch[name]) for name in _ARRAYS]
        for row, *values in zip(rows, *columns, strict=True):
            row.update(zip(_ARRAYS, values, strict=True))
        self.prompts.map(row["image_vector"] for row in rows if not self._sure(row))
        return rows

    def _sure(self, row: Row) -> bool:
        """Whether the ranker answers alone."""
        return bool(self.stage.ranking and row["chances"] and math.exp(row["chances"][0]) > self.stage.sure)

    def _beginning(self, ids: npt.ArrayLike) -> TokenPrompt:
        return self._begun(np.asarray(ids, np.int32).tobytes())

    async def _link(self, row: Row) -> Answer | Row:
        self.mentions += 1
        try:
            asked = with_options(self.stage, row["options"])
            answer = None if self._sure(row) else await self.model_answer(asked, row)
        except ValueError as reason:  # options that do not go together, or a prompt that the engine refuses
            return {"error": str(reason)}
        if answer is None:
            self.ranked += 1
            return self.names.answer_by_ranker(asked, row)
        return self._joined(asked, row, answer)

    async def model_answer(self, asked: Generate, row: Row) -> ModelAnswer:
        """The language model's answer to a mention. Raises ValueError for a prompt that is too long."""
        if row["choice"] is None or self.choosing is None:
            return ModelAnswer(await self._named(asked, row), None)
        return ModelAnswer(*await asyncio.gather(self._named(asked, row), self._chosen(row, self.choosing)))

    def chances(self, row: Row, chosen: LogProbs | None, choice_weight: float) -> dict[int, float]:
        """The ranker's log-probabilities of entities, by row, with the language model's choice."""
        logs = row["chances"] or []
        if chosen is not None:
            logs = reranked(logs, chosen, choice_weight)
        return dict(zip(row["likely"] or (), logs, strict=True))

    def _joined(self, asked: Generate, row: Row, answer: ModelAnswer) -> Answer:
        """The model's answer, joined with what the ranker or the demonstrations say."""
        found, chosen = answer
        chances = self.chances(row, chosen, asked.choice_weight)
        said = {candidate.leaf: math.exp(candidate.log_prob) for candidate in found}
        if asked.ranking and chances:
            found = joined(found, self.names.chances(chances), asked.ranking, asked.beams)
        elif weight := asked.neighbour_weight:
            shares = self.names.shares(row["nearest"], row["votes"])
            found = interpolated(found, shares, weight, asked.beams)
        why = None
        if row["reasons"]:
            picked = {} if chosen is None else dict(zip(row["likely"], np.exp(chosen).tolist(), strict=False))
            best = self.names.best_bearer(found[0].leaf, chances)
            why = reasons_of(row["reasons"], said.get(found[0].leaf), picked.get(best))
        return Answer(found, asked.nil_threshold, chances, why)

    async def _named(self, asked: Generate, row: Row) -> list[Candidate]:
        """The names that the language model writes, and others that it judges."""
        names = self._likely(asked, row) if asked.judged < 1 and asked.ranking else set()
        found = await self._in_rounds(asked, row, names)
        if not found:
            found = await self.rollouts.names(asked, row)
            found += await self.rollouts.judged(asked, row, names - {candidate.leaf for candidate in found})
        if asked.prior_weight:
            found = await self.rollouts.prior.corrected(found, asked.prior_weight, asked.length_penalty)
        return found

    async def _chosen(self, row: Row, choosing: Choosing) -> LogProbs:
        """Log-probabilities of the ranker's best candidates by the model's choice among them."""
        search = Search(choosing.tree, choosing.most, 0.0, True)
        beginning = self._beginning(row["prompt"][: row["beginning"]])
        rest = self.prompts.tokens(row["choice"], row["image_vector"])
        if self.engine.takes(search, len(beginning), len(rest)):
            found = await self.engine.beams(search, beginning, rest, self.usage)
        else:
            found = await self.rollouts.letters(choosing, row)
        said = {candidate.leaf: candidate.log_prob for candidate in found}
        return choosing.log_probs(said, min(choosing.most, len(row["likely"])))

    def _likely(self, asked: Generate, row: Row) -> set[int]:
        """The leaves of the ranker's candidates that are to be judged, written or not."""
        pairs = zip(row["likely"] or (), row["chances"] or (), strict=True)
        likely = {entity: log for entity, log in pairs if math.exp(log) >= asked.judged}
        return set(self.names.chances(likely))

    async def _in_rounds(self, asked: Generate, row: Row, names: Collection[int] = ()) -> list[Candidate]:
        """Search in lock step with all other mentions, and judge `names`; empty if that is not possible.
        Exact search has no beams. Prompts without a shared set have common beginnings only by chance, which
        vLLM's cache finds."""
        prompt, begins = row["prompt"], row["beginning"]
        if asked.search != "beam" or (row["shots"] and not begins):
            return []
        search = Search(self.tree, asked.beams, asked.length_penalty, asked.score == "tree")
        beginning = self._beginning(prompt[:begins])
        rest = self.prompts.tokens(prompt[begins:], row["image_vector"])
        if not self.engine.takes(search, len(beginning), len(rest)):
            return []
        judged = tuple(sorted(names, key=self.tree.path))  # those that begin alike are judged together
        return await self.engine.beams(search, beginning, rest, self.usage, judged)

    def retire(self) -> None:
        self.engine.retire(self.tree)

    def check(self) -> None:
        self.engine.check()

    def close(self) -> None:
        self.engine.close()

    def measures(self) -> Measures:
        counts = {"mentions": self.mentions, "ranked": self.ranked, "cut": self.rollouts.cut}
        counts["shared"] = self.rollouts.room.shared
        return counts | asdict(self.usage) | self.engine.measures()


def _choosing(stage: Generate, workspace: Workspace) -> Choosing | None:
    """The choice among the ranker's best candidates; None if the language model is not asked to choose."""
    if not stage.rerank or not 0 < stage.ranking < 1 or not workspace.ranks:
        return None
    return Choosing(stage.rerank, workspace.tokenize, workspace.tree.end_token)


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
