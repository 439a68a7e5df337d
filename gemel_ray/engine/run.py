"""The engine loop: vLLM in this process, which admits new prompts while others decode.

One thread steps the engine; coroutines give it prompts and await their outcomes, so the batches of all
callers overlap and the engine never runs empty between them. There are two kinds of work. *Beams* are a whole
search in lock step with all others, in rounds of the model (rounds.py). A *rollout* is a vLLM request: a
prompt (embeddings), continued greedily under the prefix tree from one of its nodes until a name ends, which
reports at every step the best allowed tokens with their log-probabilities; every search in search.py is made
of rollouts only. Only the package vllm/ beside this file imports vLLM, and only when an engine starts."""

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
from gemel_ray.engine.vllm.starting import EngineOptions, alone, embedding_table, end, imported, start
from gemel_ray.engine.work import Candidate, Outcome, Prompt, RolloutOptions, Step, TokenPrompt, Usage
from gemel_ray.errors import GemelError, Mistake
from gemel_ray.knowledge.prefix_tree import PrefixTree

T = TypeVar("T")
# Seconds. A step takes milliseconds, on a slow machine a few seconds, and an engine compiles before its first
# step. A longer step (a GPU that does not respond) never ends.
HUNG = 30.0


class EngineDied(GemelError, RuntimeError):
    """The engine's thread has ended; the process must be replaced."""


@dataclass(frozen=True, slots=True)
class _Beams:
    search: Search
    mention: Mention


class Engine:
    """A running vLLM engine; every rollout names its prefix tree. Thread-safe; `close()` when done."""

    def __init__(self, options: EngineOptions, end_token: int) -> None:
        self.options, self.end_token = options, end_token
        imported(options)
        with alone():
            self._engine = start(options)
            try:
                self._embeddings = embedding_table(self._engine)
                self._rollouts = Rollouts(self._engine)
                self._rounds = opened(self._engine, self._rollouts, options, self._embeddings, end_token)
            except BaseException:
                end(self._engine)
                raise
        self._names, self._hold_numbers = itertools.count(), itertools.count(1)
        self._steps, self._stepped = 0, time.monotonic()
        self._inbox: queue.SimpleQueue[Rollout | _Beams | Callable[[], None] | None] = queue.SimpleQueue()
        self._death: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def width(self) -> int:
        """The width of the language model's embeddings."""
        return self._embeddings.shape[1]

    @property
    def length(self) -> int:
        """The greatest number of tokens of a prompt with its name."""
        return int(self._engine.model_config.max_model_len)

    @property
    def cache(self) -> int:
        """The tokens of the key-value cache that rollouts can use."""
        cache = self._engine.vllm_config.cache_config
        blocks = (cache.num_gpu_blocks or 0) - (self._rounds.arena.all if self._rounds else 0)
        return int(blocks * cache.block_size)

    @property
    def busy(self) -> bool:
        """Whether any work is in progress."""
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
        """Free the resources of `tree`, under which there will be no more searches."""
        if self._rounds is not None:
            self._inbox.put(partial(self._rounds.retire, tree))

    def embed(self, tokens: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Embeddings of token ids, [tokens, width]."""
        return self._embeddings[torch.as_tensor(np.asarray(tokens, dtype=np.int64))]

    def hold(self) -> int:
        """A number to keep a prompt under (`RolloutOptions.keep`), until it is given to `release`."""
        return next(self._hold_numbers)

    def release(self, hold: int) -> None:
        """Let the cache do as it likes with what `hold` keeps."""
        self._inbox.put(partial(self._rollouts.holds.close, hold))

    def takes(self, search: Search, beginning: int, rest: int) -> bool:
        """Whether `beams` accepts prompts of these numbers of tokens."""
        return self._rounds is not None and self._rounds.fits(search, beginning, rest)

    async def beams(
        self,
        search: Search,
        beginning: TokenPrompt,
        rest: TokenPrompt,
        usage: Usage,
        judged: tuple[int, ...] = (),
    ) -> list[Candidate]:
        """The names that search.beam finds for this prompt; then those of the leaves `judged` that it has not
        found, with the scores that it would give them. Errors and cancelling as for `rollout`."""
        self._check_length(len(beginning) + len(rest), search.tree.depth)
        work = _Beams(search, Mention(beginning, rest, Outcome(), usage, judged))
        assert self._rounds is not None, "asked without `takes`"
        leave = partial(self._rounds.drop, search, work.mention)
        return await self._done(work, work.mention.outcome, leave)

    async def rollout(self, prompt: Prompt, asked: RolloutOptions, usage: Usage) -> list[Step]:
        """Continue `prompt` greedily. Returns one Step per token; the greedy path is the first token of each
        step.

        Cancelling the caller aborts the request. Raises ValueError for a prompt that is too long,
        EngineDied if the engine has stopped.
        """
        self._check_length(len(prompt), asked.limit)
        name = next(self._names)
        work = Rollout(name, prompt, asked.keep, sampling(asked, name, self.end_token), Outcome(), usage)
        return await self._done(work, work.outcome, partial(self._rollouts.abort, work.request))

    def _check_length(self, tokens: int, name: int) -> None:
        """Check the length. Assemble makes prompts that fit the names of its version, but names may be
        added."""
        if tokens + name > self.length:
            raise Mistake(
                f"the prompt has {tokens} tokens and names up to {name}, but the engine takes {self.length}: "
                "a longer name was added to the knowledge base after the prompt was made; link the document "
                f"again, or set generate.length to {tokens + name} or more"
            )

    async def _done(self, work: Rollout | _Beams, outcome: Outcome[T], leave: Callable[[], None]) -> T:
        self.check()
        self._inbox.put(work)
        if self._death is not None:  # died between the check and the put: the inbox will not be read
            self.check()
        try:
            return await outcome.future
        except asyncio.CancelledError:
            self._inbox.put(leave)
            raise

    def close(self) -> None:
        """Stop the thread and free the engine, if it runs. Work in progress fails with EngineDied."""
        self._inbox.put(None)
        self._thread.join(timeout=60)

    def check(self) -> None:
        """Raise EngineDied if the engine has stopped, or hangs in a step."""
        if self._death is not None:
            raise EngineDied(f"the engine has stopped: {self._death!r}") from self._death
        if time.monotonic() - self._stepped > HUNG and self.busy:
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
        except BaseException as death:  # all waiting callers must get an error: they must not wait for ever
            self._death = death
            self._fail_all(death)
        finally:
            end(self._engine)

    def _admit(self) -> bool:
        """Accept new work; wait only if there is nothing to compute. False: stop."""
        while True:
            idle = not self.busy
            try:
                item = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if item is None:
                return False
            if idle:
                self._stepped = time.monotonic()  # there were no steps while it was idle
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
            if isinstance(item, Rollout):
                waiting.append(item.outcome)
            elif isinstance(item, _Beams):
                waiting.append(item.mention.outcome)
        for outcome in waiting:
            outcome.settle(EngineDied(f"the engine has stopped: {death!r}"))
