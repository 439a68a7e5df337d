"""The engine loop: vLLM in this process, admitting new prompts while others decode.

One thread owns the engine and steps it; coroutines hand it prompts and await their outcome, so
batches of any number of callers overlap and the engine never drains between them. There are two
kinds of work. *Beams* are a whole search in lock step with all others, in rounds of the model itself
(rounds.py). A *rollout* is a request of vLLM's: a prompt (embeddings), continued greedily under the
prefix tree from one of its nodes until a name ends, reporting at every step the best allowed tokens with
their log-probabilities; every search in `search.py` is made of rollouts and of nothing else. Only the
package vllm/ beside this file imports vLLM, and only when an engine starts.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from gemel_ray.engine.columns import Mention
from gemel_ray.engine.rounds import Search
from gemel_ray.engine.vllm.opening import opened
from gemel_ray.engine.vllm.rollouts import Rollout, Rollouts, sampling
from gemel_ray.engine.vllm.starting import EngineOptions, embedding_table, start
from gemel_ray.engine.work import Asked, Candidate, Outcome, Prompt, Step, Usage, Written
from gemel_ray.errors import GemelError, Mistake
from gemel_ray.knowledge.prefix_tree import PrefixTree

T = TypeVar("T")
# Seconds. A step takes milliseconds, on a slow machine a few seconds, and whatever an engine compiles it
# compiles before its first one. What takes longer (a GPU that does not answer) never comes back.
HUNG = 30.0


class EngineDied(GemelError, RuntimeError):
    """The engine's thread has ended; the process must be replaced."""


@dataclass(frozen=True, slots=True)
class _Beams:
    search: Search
    mention: Mention

    @property
    def outcome(self) -> Outcome[list[Candidate]]:
        return self.mention.outcome


class Engine:
    """A running vLLM engine; every rollout names its prefix tree. Thread-safe; `close()` when done."""

    def __init__(self, options: EngineOptions, end_token: int) -> None:
        self.options, self.end_token = options, end_token
        self._engine = start(options)
        self._embeddings = embedding_table(self._engine)
        self._rollouts = Rollouts(self._engine)
        self._rounds = opened(self._engine, self._rollouts, options, self._embeddings, end_token)
        self._names, self._hold_numbers = itertools.count(), itertools.count(1)
        self._steps, self._stepped = 0, time.monotonic()
        self._inbox: queue.SimpleQueue[Rollout | _Beams | Callable[[], None] | None] = queue.SimpleQueue()
        self._death: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def width(self) -> int:
        """Of the language model's embeddings."""
        return self._embeddings.shape[1]

    @property
    def length(self) -> int:
        """Tokens of a prompt and its name, at most."""
        return int(self._engine.model_config.max_model_len)

    @property
    def cache(self) -> int:
        """Tokens that the key-value cache holds for rollouts."""
        cache = self._engine.vllm_config.cache_config
        blocks = (cache.num_gpu_blocks or 0) - (self._rounds.arena.all if self._rounds else 0)
        return int(blocks * cache.block_size)

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self._rollouts.running) or (self._rounds is not None and self._rounds.busy)

    def measures(self) -> dict[str, int]:
        """Steps taken, bytes hashed for the prefix cache, rounds of beams, passes of the model over them, and
        those with shared attention, since the start."""
        rounds = self._rounds
        return {
            "steps": self._steps,
            "hashed": self._rollouts.hashes.hashed,
            "rounds": rounds.rounds if rounds else 0,
            "passes": rounds.seam.passes if rounds else 0,
            "shared": rounds.seam.shared.passes if rounds and rounds.seam.shared else 0,
        }

    def forget(self) -> None:
        """Empty the prefix cache: for measurements, while nothing runs."""
        self._engine.reset_prefix_cache()
        if self._rounds is not None:
            self._rounds.arena.forget()

    def retire(self, tree: PrefixTree) -> None:
        """Nobody will be searched under `tree` any more."""
        if self._rounds is not None:
            self._inbox.put(partial(self._rounds.retire, tree))

    def embed(self, tokens: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Embeddings of token ids, [tokens, width]."""
        return self._embeddings[torch.as_tensor(np.asarray(tokens, dtype=np.int64))]

    def hold(self) -> int:
        """A number to keep a prompt under (`Asked.keep`), until it is given to `release`."""
        return next(self._hold_numbers)

    def release(self, hold: int) -> None:
        """Let the cache do as it likes with what `hold` keeps."""
        self._inbox.put(partial(self._rollouts.holds.close, hold))

    def takes(self, search: Search, beginning: int, own: int) -> bool:
        """Whether `beams` can be asked for prompts of so many tokens."""
        return self._rounds is not None and self._rounds.fits(search, beginning, own)

    async def beams(
        self, search: Search, beginning: Written, own: Written, usage: Usage, judged: tuple[int, ...] = ()
    ) -> list[Candidate]:
        """The names that search.beam finds behind this prompt; after them those of the leaves `judged` that
        it has not found, with the scores it would have given them. Errors and cancelling as of `rollout`."""
        self._check_length(len(beginning) + len(own), search.tree.depth)
        work = _Beams(search, Mention(beginning, own, Outcome(), usage, judged))
        assert self._rounds is not None, "asked without `takes`"
        return await self._done(work, work.outcome, partial(self._rounds.drop, search, work.mention))

    async def rollout(self, prompt: Prompt, asked: Asked, usage: Usage) -> list[Step]:
        """Continue `prompt` greedily, as asked. Returns one Step a token; the greedy path itself is each
        step's first token.

        Cancelling the caller aborts the request. Raises ValueError for a prompt that is too long,
        EngineDied when the engine is gone.
        """
        self._check_length(len(prompt), asked.limit)
        name = next(self._names)
        work = Rollout(name, prompt, asked.keep, sampling(asked, name, self.end_token), Outcome(), usage)
        return await self._done(work, work.outcome, partial(self._rollouts.abort, work.request))

    def _check_length(self, tokens: int, name: int) -> None:
        """Assemble makes prompts that fit, with the names that are known at that time."""
        if tokens + name > self.length:
            raise Mistake(
                f"the prompt has {tokens} tokens and names up to {name}, but the engine takes {self.length}: "
                "the knowledge base has had a longer name since the prompt was made; do it again, or set "
                f"generate.length to {tokens + name} or more"
            )

    async def _done(self, work: Rollout | _Beams, outcome: Outcome[T], leave: Callable[[], None]) -> T:
        self.check()
        self._inbox.put(work)
        if self._death is not None:  # died between the check and the put: nobody will read the inbox
            self.check()
        try:
            return await outcome.future
        except asyncio.CancelledError:
            self._inbox.put(leave)
            raise

    def close(self) -> None:
        """Stop the thread and free the engine. What is under way fails with EngineDied."""
        self._inbox.put(None)
        self._thread.join(timeout=60)

    def check(self) -> None:
        """Raises EngineDied when the engine is gone, or hangs in a step."""
        if self._death is not None:
            raise EngineDied(f"the engine has stopped: {self._death!r}") from self._death
        if self.busy and time.monotonic() - self._stepped > HUNG:
            raise EngineDied(f"the engine hangs: no step has ended for {HUNG:.0f} seconds")

    def _run(self) -> None:
        try:
            while self._admit():
                if self._rollouts.running:
                    self._rollouts.step()
                if self._rounds is not None and self._rounds.busy:
                    self._rounds.step()
                self._steps, self._stepped = self._steps + 1, time.monotonic()
            raise EngineDied("closed")
        except BaseException as death:  # a dead engine must fail everybody who waits, never hang them
            self._death = death
            self._fail_all(death)
        finally:
            self._engine.engine_core.shutdown()

    def _admit(self) -> bool:
        """Take in new work; waits only when there is nothing to compute. False to stop."""
        while True:
            idle = not self.busy
            try:
                item = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if item is None:
                return False
            if idle:
                self._stepped = time.monotonic()  # till now there was nothing to step for
            if isinstance(item, Rollout):
                self._rollouts.add(item)
            elif isinstance(item, _Beams):
                assert self._rounds is not None
                self._rounds.add(item.search, item.mention)
            else:
                item()

    def _fail_all(self, death: BaseException) -> None:
        waiting: list[Outcome[list[Step]] | Outcome[list[Candidate]]]
        waiting = [work.outcome for work in self._rollouts.running.values()]
        waiting += [mention.outcome for mention in self._rounds.waiting()] if self._rounds is not None else []
        while not self._inbox.empty():
            item = self._inbox.get()
            waiting += [item.outcome] if isinstance(item, Rollout | _Beams) else []
        for outcome in waiting:
            outcome.tell(EngineDied(f"the engine has stopped: {death!r}"))
