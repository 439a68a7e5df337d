"""Decides whether an engine searches in rounds: checks and tries what they need before the first prompt.

In the trial, a few names are searched in rounds and by rollouts: the results must be equal. Names and
signatures do not show what vLLM means by a length, a slot or the order of blocks; numbers do. The trial has
two synthetic prompts with one beginning that ends inside a block, vectors in the place of a picture, and ten
names that fork, stand alone, and are prefixes of each other. All ten are found both ways, and compared."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path as Folder
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gemel_ray.engine.columns import Arena, Mention
from gemel_ray.engine.rounds import Rounds, Search
from gemel_ray.engine.search import Expansions, beam
from gemel_ray.engine.vllm.recorded import Recorded
from gemel_ray.engine.vllm.rollouts import Rollout, Rollouts, sampling
from gemel_ray.engine.vllm.seam import Refused, Seam, give_back, reserve, seam
from gemel_ray.engine.vllm.shared_prefix import shared_prefix
from gemel_ray.engine.work import Candidate, Outcome, Path, Prompt, RolloutOptions, Step, TokenPrompt, Usage
from gemel_ray.knowledge.prefix_tree import build

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

    from gemel_ray.engine.vllm.starting import EngineOptions

_log = logging.getLogger(__name__)
_NAMES = ("ab", "ac", "acd", "b", "befg", "befh", "c", "da", "db", "dc")
_LETTERS = 8
PARTS = 2  # of the columns, on a GPU: see rounds.py
# Tolerance of a log-probability. Half precision depends on the rest of the pass: its numbers between 16 and
# 32 are 1/8 apart. A wrong position or block changes it by much more.
_FLOAT32, _HALF = 1e-3, 1.5


def opened(
    engine: LLMEngine, rollouts: Rollouts, options: EngineOptions, embeddings: Tensor, end_token: int
) -> Rounds | None:
    """The rounds; None if searches are made of rollouts: with `rounds` never, or auto and an unsupported
    model or vLLM."""
    if options.rounds == "never":
        return None
    try:
        seam_ = seam(engine, -(-options.columns // PARTS) * (options.beams + 1))
        blocks = reserve(engine, _share(engine, seam_, options))
        try:
            return _tried(seam_, blocks, options, partial(prove, rollouts, embeddings, end_token))
        except BaseException:
            give_back(engine, blocks)
            raise
    except Refused as reason:
        if options.rounds == "always":
            raise
        _log.warning("beams are searched by rollouts, which is slower: %s", reason)
        return None


def _tried(seam_: Seam, blocks: list[int], options: EngineOptions, try_: Callable[[Rounds], None]) -> Rounds:
    """Rounds that passed the trial; on a GPU with CUDA graphs and shared attention, else without."""

    def made(replayed: bool) -> Rounds:
        arena = Arena(blocks, seam_.block)
        parts = 1 if seam_.device.type == "cpu" else PARTS
        rounds = Rounds(seam_, arena, options.columns, options.beams, parts=parts, replayed=replayed)
        try:
            seam_.recorded = Recorded(seam_) if replayed and seam_.recordable else None
            try_(rounds)
        except Refused:
            raise
        except Exception as fault:  # of any kind: it calls vLLM's internals
            raise Refused(f"the trial search failed: {fault!r}") from fault
        return rounds

    if seam_.device.type != "cuda":
        return made(False)
    if options.shared_attention != "never":
        try:
            seam_.shared = shared_prefix(seam_, options.shared_attention)
            with seam_.shared.wherever_it_can():
                return made(True)
        except Refused as reason:
            seam_.shared = None
            _log.info("each beam reads the demonstrations separately: %s", reason)
    try:
        return made(True)
    except Refused as reason:
        _log.warning("rounds run without CUDA graphs: %s", reason)
        return made(False)


def _share(engine: LLMEngine, seam_: Seam, options: EngineOptions) -> int:
    """The number of blocks for rounds. The rest must have room for the longest prompt, or vLLM waits for
    ever."""
    config: Any = engine.vllm_config.cache_config
    longest = -(-seam_.length // seam_.block)
    number = min(int(config.num_gpu_blocks * options.arena), config.num_gpu_blocks - longest - 2)
    if number < longest:
        raise Refused("the key-value cache has no room for rounds beside rollouts")
    return number


def prove(rollouts: Rollouts, embeddings: Tensor, end_token: int, rounds: Rounds) -> None:
    """Compare both ways; raise Refused if they differ. `embeddings` are the model's, [vocabulary, width];
    nothing else may run meanwhile."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as aside:
        # Not in this thread, which may have a running event loop.
        proof = _Proof(rollouts, rounds, embeddings, end_token, Folder(folder))
        try:
            aside.submit(asyncio.run, proof.run()).result()
        finally:
            for request in list(rollouts.running):
                rollouts.abort(request)


class _Proof:
    def __init__(
        self, rollouts: Rollouts, rounds: Rounds, embeddings: Tensor, end_token: int, folder: Folder
    ) -> None:
        self.rollouts, self.rounds, self.embeddings, self.end_token = rollouts, rounds, embeddings, end_token
        numbers = np.random.default_rng(0).permutation(len(embeddings))
        self.ids = numbers[numbers != end_token]
        self.folder, self.tree = folder, build(_NAMES, self._tokens, end_token, folder)
        self.requests = 0

    def _tokens(self, names: list[str]) -> list[list[int]]:
        return [[int(self.ids[ord(letter) - ord("a")]) for letter in name] for name in names]

    async def run(self) -> None:
        lengths = 5, self.rounds.arena.size + 3
        searches = [Search(self.tree, len(_NAMES), 0.0, renormalise) for renormalise in (True, False)]
        asked = [asyncio.create_task(self._both(s, length)) for s in searches for length in lengths]
        while not all(task.done() for task in asked):
            await asyncio.sleep(0)
            if self.rollouts.running:
                self.rollouts.step()
            if self.rounds.busy:
                self.rounds.step()
        for task in asked:
            task.result()
        self.rounds.retire(self.tree)

    async def _both(self, search: Search, length: int) -> None:
        begins = self.rounds.arena.size * 3 // 2
        ids = np.resize(self.ids[_LETTERS:], begins + length)
        pictures = ((2, self.embeddings[ids[-2:]]),)  # instead of other tokens
        beginning, rest = (
            TokenPrompt(ids[:begins], ids[:begins], pictures),
            TokenPrompt(ids[begins:], ids[begins:]),
        )
        work = Mention(beginning, rest, Outcome(), Usage())
        self.rounds.add(search, work)
        whole = self.embeddings[torch.from_numpy(ids)]
        whole[2:4] = whole[-2:]
        expected = await self._by_rollouts(search, Prompt(whole, ids, len(ids)))
        _compare(expected, await work.outcome.future, exact=whole.dtype == torch.float32)

    async def _by_rollouts(self, search: Search, prompt: Prompt) -> list[Candidate]:
        tree, usage = search.tree, Usage()

        async def rollout(path: Path, node: int, wide: int = 0) -> list[Step]:
            asked = RolloutOptions(
                tree=self.folder,
                node=node,
                limit=tree.depth - len(path),
                wide=search.width,
                renormalise=search.renormalise,
            )
            self.requests += 1
            whole = torch.cat([prompt.embeddings, self.embeddings[list(path)]])
            longer = Prompt(whole, np.append(prompt.identity, path).astype(np.int64), prompt.base)
            params = sampling(asked, self.requests, self.end_token)
            work = Rollout(self.requests, longer, 0, params, Outcome(), usage)
            self.rollouts.add(work)
            return await work.outcome.future

        expansions = Expansions(tree, rollout, renormalise=search.renormalise)
        return await beam(tree, expansions, search.penalty, search.width)


def _compare(rollouts: Sequence[Candidate], rounds: Sequence[Candidate], *, exact: bool) -> None:
    theirs, ours = ({c.leaf: c.log_prob for c in found} for found in (rollouts, rounds))
    if theirs.keys() != ours.keys() or len(theirs) != len(_NAMES):
        raise Refused(f"rounds find {sorted(ours)} where rollouts find {sorted(theirs)}")
    distance = max(abs(theirs[leaf] - ours[leaf]) for leaf in theirs)
    _log.info("the trial's log-probabilities by rounds and by rollouts differ by at most %.2g", distance)
    if not distance <= (_FLOAT32 if exact else _HALF):
        raise Refused(f"rounds and rollouts give log-probabilities that differ by {distance:.2g}")
