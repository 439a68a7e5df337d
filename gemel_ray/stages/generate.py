"""Generate: the language model writes the name of an entity.

Asynchronous by row: each mention's search runs on its own, prompts enter the engine while others
decode, across batches. Prompt embeddings are built here, in the engine's own process, and never
leave it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from gemel_ray.engine.exact import exact
from gemel_ray.engine.neighbours import Neighbours, interpolated
from gemel_ray.engine.prior import Prior
from gemel_ray.engine.run import Engine, Usage
from gemel_ray.engine.search import Candidate, Expansions, Path, Rollout, beam, greedy, probabilities
from gemel_ray.engine.vllm_engine import EngineOptions, Step
from gemel_ray.records import CANDIDATE
from gemel_ray.stage import MACHINE, Stage, Work, answer
from gemel_ray.stages.assemble import query_text

if TYPE_CHECKING:
    import torch

    from gemel_ray.knowledge.workspace import Workspace

_FIELDS = ("entity", "entity_id", "score", "probability", "candidates")


@dataclass(frozen=True, kw_only=True)
class Generate(Stage):
    """`beams` is the number of candidates wanted. `search`: `beam` goes on with so many names at once (1 is
    greedy); `exact` finds those that truly have the highest scores, unless it needs more than `requests` of
    the engine (the manifest's `cut` counts such mentions). `score`: `paper` adds log-softmax over
    the whole vocabulary, `tree` renormalises over what the tree allows at each step. A name is ranked by the
    sum over its tokens divided by their number to the power of `length_penalty`; `prior_weight` times what
    the model gives the name without a question is taken off that sum when the search has ended. With
    `neighbours` the score is the logarithm of (1 - neighbours) * P(name), as the model says it, plus
    neighbours * P(name), as the demonstrations alone say it. Below `nil_threshold` of probability (the
    softmax of the candidates' scores) the answer is NIL. The other fields are the engine's (see
    EngineOptions).
    """

    reads: ClassVar = ("prompt", "image_vector", "shots", "similarities")
    writes: ClassVar = pa.schema(
        [
            pa.field("entity", pa.string()),
            pa.field("entity_id", pa.string()),
            pa.field("score", pa.float32()),
            pa.field("probability", pa.float32()),
            pa.field("candidates", pa.list_(CANDIDATE)),
        ]
    )
    beams: int = 5
    search: Literal["beam", "exact"] = "beam"
    requests: int = 512
    score: Literal["paper", "tree"] = "tree"
    length_penalty: float = 0.0
    prior_weight: float = 0.0
    neighbours: float = 0.5
    nil_threshold: float = 0.0
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    length: int = 4096
    tensor_parallel: int = field(default=1, metadata=MACHINE)
    cache_gib: float = field(default=2.0, metadata=MACHINE)
    gpu_memory: float = field(default=0.9, metadata=MACHINE)
    block: int = field(default=32, metadata=MACHINE)
    batch_tokens: int = field(default=2048, metadata=MACHINE)
    sequences: int = field(default=64, metadata=MACHINE)

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ValueError("generate.beams must be at least 1")
        for setting in ("nil_threshold", "prior_weight"):
            if getattr(self, setting) and self.beams == 1:
                raise ValueError(
                    f"generate.{setting} compares candidates: it needs generate.beams of 2 or more"
                )

        if not 0 <= self.neighbours <= 1:
            raise ValueError("generate.neighbours is a weight from 0 to 1")
        if self.neighbours and self.prior_weight:
            raise ValueError("generate.prior_weight and generate.neighbours cannot be had both: set one to 0")

    def start(self, workspace: Workspace) -> Work:
        return _Generating(self, workspace)

    def engine_options(self, model: str) -> EngineOptions:
        """The engine's share of the fields."""
        own = {k: v for k, v in asdict(self).items() if k in EngineOptions.__dataclass_fields__}
        return EngineOptions(model=model, candidates=max(16, 2 * self.beams), **own)


class _Room:
    """The key-value cache's tokens, given to mentions for as long as their search runs: a prompt that is
    pushed out between two of its requests is computed again, which costs more than waiting."""

    def __init__(self, tokens: int) -> None:
        self.free = self.all = tokens
        self.waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def taken(self, tokens: int) -> AsyncIterator[None]:
        tokens = min(tokens, self.all)
        if self.waiting or tokens > self.free:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting.append((tokens, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it was our turn in the very moment we left
                    self._give(tokens)
                raise
        else:
            self.free -= tokens
        try:
            yield
        finally:
            self._give(tokens)

    def _give(self, tokens: int) -> None:
        self.free += tokens
        while self.waiting and self.waiting[0][0] <= self.free:
            wanted, turn = self.waiting.popleft()
            if not turn.done():  # else its caller has left
                self.free -= wanted
                turn.set_result(None)


class _Generating(Work):
    def __init__(self, stage: Generate, workspace: Workspace) -> None:
        self.stage, self.tree, self.entities = stage, workspace.tree, workspace.entities
        options = stage.engine_options(workspace.language_model)
        self.engine = Engine(options, workspace.tree_folder, workspace.tree.end_token)
        self.prompts = workspace.prompt_embeddings(self.engine)
        self.usage, self.mentions, self.cut = Usage(), 0, 0
        self.room = _Room(self.engine.cache)
        neutral = self.engine.embed(workspace.tokenize([query_text("", "")])[0])
        self.neighbours = Neighbours(self.tree, workspace.bank, workspace.tokenize)
        self.prior = Prior(self.tree, self._behind(neutral), renormalise=stage.score == "tree")

    async def __call__(self, batch: pa.Table) -> pa.Table:
        rows = await asyncio.gather(*(self._link(row) for row in batch.to_pylist()))
        columns = {name: [row.get(name) for row in rows] for name in _FIELDS}
        table = answer(self.stage.writes, columns, [row.get("error") for row in rows])
        return table.append_column("status", pa.array([row.get("status") for row in rows], pa.string()))

    async def _link(self, row: dict[str, Any]) -> dict[str, Any]:
        self.mentions += 1
        prompt = row["prompt"]
        # Its prompt, with a picture's few vectors for one number each, and what its beams write.
        tokens = len(prompt) + self.stage.beams * (self.tree.depth + self.stage.block)
        async with self.room.taken(tokens):
            try:
                found = await self._search(prompt, row["image_vector"])
            except ValueError as reason:  # this prompt's own fault: too long
                return {"error": str(reason)}
        if weight := self.stage.neighbours:
            shares = self.neighbours.shares(row["shots"], row["similarities"])
            found = interpolated(found, shares, weight, self.stage.beams)
        return self._row(found)

    async def _search(self, prompt: list[int], image: list[float] | None) -> list[Candidate]:
        embeddings = self.prompts(prompt, None if image is None else np.asarray(image, np.float32))
        stage, tree = self.stage, self.tree
        expansions = Expansions(tree, self._behind(embeddings), renormalise=stage.score == "tree")
        if stage.search == "exact":
            found = await exact(tree, expansions, stage.length_penalty, stage.beams, stage.requests)
            self.cut += expansions.cut
        elif stage.beams == 1:
            found = await greedy(tree, expansions, stage.length_penalty)
        else:
            found = await beam(tree, expansions, stage.length_penalty, stage.beams)
        if stage.prior_weight:
            return await self.prior.corrected(found, stage.prior_weight, stage.length_penalty)
        return found

    def _behind(self, embeddings: torch.Tensor) -> Rollout:
        """The engine, continuing this prompt."""

        async def rollout(path: Path, node: int, wide: int = 0) -> list[Step]:
            limit = 1 if wide else self.tree.depth - len(path)
            whole = self.prompts.extended(embeddings, path)
            renormalise = self.stage.score == "tree"
            return await self.engine.rollout(whole, node, limit, renormalise, self.usage, wide)

        return rollout

    def _row(self, found: list[Candidate]) -> dict[str, Any]:
        """The answer's columns. A name that several entities bear stands once for each of them, in the
        knowledge base's order; the probability is the name's."""
        candidates = [
            {"entity": name, "entity_id": identity, "score": candidate.score}
            for candidate in found
            for identity, name in self.entities.of(self.tree.entities(candidate.leaf))
        ]
        probability = probabilities(found)[0]
        sure = probability >= self.stage.nil_threshold
        best = candidates[0] if sure else {"entity": None, "entity_id": None}
        return {
            **best,
            "score": found[0].score,
            "probability": probability,
            "candidates": candidates,
            "status": "linked" if sure else "nil",
        }

    def check(self) -> None:
        self.engine.check()

    def close(self) -> None:
        self.engine.close()

    def measures(self) -> dict[str, Any]:
        return {"mentions": self.mentions, "cut": self.cut, **asdict(self.usage)}
