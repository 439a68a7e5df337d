"""The engine loop: vLLM in this process, admitting new prompts while others decode.

One thread owns the engine and steps it; coroutines hand it prompts and await their outcome, so
batches of any number of callers overlap and the engine never drains between them. The unit of
work is a *rollout*: a prompt (embeddings), continued greedily under the prefix tree from one of its
nodes until a name ends, reporting at every step the best allowed tokens with their
log-probabilities. Every search in `search.py` is made of rollouts and of nothing else. Only this
folder imports vllm, and only when an engine starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gemel_ray.engine.prompts import Prompt
from gemel_ray.engine.vllm_engine import (
    Asked,
    EngineOptions,
    PrefixHashes,
    Step,
    embedding_table,
    holds,
    sampling,
    start,
    steps_of,
)

if TYPE_CHECKING:
    from vllm import RequestOutput

# Seconds. A step takes milliseconds, on a slow machine a few seconds, and whatever an engine compiles it
# compiles before its first one. What takes longer (a GPU that does not answer) never comes back.
HUNG = 120.0


@dataclass(slots=True)
class Usage:
    """Prompt tokens asked of the engine, and those of them found in its prefix cache; decode steps."""

    asked: int = 0
    cached: int = 0
    decoded: int = 0
    requests: int = 0


@dataclass(slots=True)
class _Rollout:
    name: int
    prompt: Prompt
    keep: int
    params: Any
    loop: asyncio.AbstractEventLoop
    outcome: asyncio.Future[list[Step]]
    usage: Usage

    @property
    def request(self) -> str:
        return str(self.name)


class EngineDied(RuntimeError):
    """The engine's thread has ended; the process must be replaced."""


class Engine:
    """A running vLLM engine; every rollout names its prefix tree. Thread-safe; `close()` when done."""

    def __init__(self, options: EngineOptions, end_token: int) -> None:
        self.options, self.end_token = options, end_token
        self._engine = start(options)
        self._embeddings = embedding_table(self._engine)
        self._hashes = PrefixHashes(self._engine)
        self._names = itertools.count()
        self._steps, self._stepped = 0, time.monotonic()
        self._holds, self._hold_numbers = holds(self._engine), itertools.count(1)
        self._inbox: queue.SimpleQueue[_Rollout | Callable[[], None] | None] = queue.SimpleQueue()
        self._running: dict[str, _Rollout] = {}
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
        """Tokens that the key-value cache holds."""
        cache = self._engine.vllm_config.cache_config
        return int((cache.num_gpu_blocks or 0) * cache.block_size)

    def measures(self) -> dict[str, int]:
        """Steps taken, and bytes hashed for the prefix cache, since the start."""
        return {"steps": self._steps, "hashed": self._hashes.hashed}

    def forget(self) -> None:
        """Empty the prefix cache: for measurements, while nothing runs."""
        self._engine.reset_prefix_cache()

    def embed(self, tokens: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Embeddings of token ids, [tokens, width]."""
        return self._embeddings[torch.as_tensor(np.asarray(tokens, dtype=np.int64))]

    def hold(self) -> int:
        """A number to keep a prompt under (`Asked.keep`), until it is given to `release`."""
        return next(self._hold_numbers)

    def release(self, hold: int) -> None:
        """Let the cache do as it likes with what `hold` keeps."""
        self._inbox.put(partial(self._holds.close, hold))

    async def rollout(self, prompt: Prompt, asked: Asked, usage: Usage) -> list[Step]:
        """Continue `prompt` greedily, as asked. Returns one Step a token; the greedy path itself is each
        step's first token.

        Cancelling the caller aborts the request. Raises ValueError for a prompt that is too long,
        EngineDied when the engine is gone.
        """
        if len(prompt) + asked.limit > self.length:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens and names up to {asked.limit}, but the engine takes "
                f"{self.length}: lower retrieve.demonstrations or raise generate.length"
            )
        self.check()
        loop = asyncio.get_running_loop()
        name = next(self._names)
        params = sampling(asked, name, self.end_token)
        work = _Rollout(name, prompt, asked.keep, params, loop, loop.create_future(), usage)
        self._inbox.put(work)
        if self._death is not None:  # died between the check and the put: nobody will read the inbox
            self.check()
        try:
            return await work.outcome
        except asyncio.CancelledError:
            self._inbox.put(partial(self._abort, work.request))
            raise

    def close(self) -> None:
        """Stop the thread and free the engine. Rollouts under way fail with EngineDied."""
        self._inbox.put(None)
        self._thread.join(timeout=60)

    def check(self) -> None:
        """Raises EngineDied when the engine is gone, or hangs in a step."""
        if self._death is not None:
            raise EngineDied(f"the engine has stopped: {self._death!r}") from self._death
        if self._running and time.monotonic() - self._stepped > HUNG:
            raise EngineDied(f"the engine hangs: no step has ended for {HUNG:.0f} seconds")

    def _run(self) -> None:
        try:
            while self._admit():
                finished = [out for out in self._engine.step() if out.finished]
                self._steps, self._stepped = self._steps + 1, time.monotonic()
                self._deliver(finished)
            raise EngineDied("closed")
        except BaseException as death:  # a dead engine must fail everybody who waits, never hang them
            self._death = death
            self._fail_all(death)
        finally:
            self._engine.engine_core.shutdown()

    def _admit(self) -> bool:
        """Hand new prompts to vLLM; waits only when there is nothing to compute. False to stop."""
        while True:
            idle = not self._running
            try:
                item = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if item is None:
                return False
            if idle:
                self._stepped = time.monotonic()  # till now there was nothing to step for
            if isinstance(item, _Rollout):
                self._add(item)
            else:
                item()

    def _add(self, work: _Rollout) -> None:
        self._hashes.prompts[work.name] = work.prompt
        if work.keep:
            self._holds.open(work.keep)
        try:
            self._engine.add_request(work.request, {"prompt_embeds": work.prompt.embeddings}, work.params)
        except ValueError as refusal:  # this prompt's fault, not the engine's
            del self._hashes.prompts[work.name]
            _tell(work, refusal)
            return
        self._running[work.request] = work

    def _abort(self, request: str) -> None:
        if (work := self._running.pop(request, None)) is not None:
            self._engine.abort_request([request])
            del self._hashes.prompts[work.name]

    def _deliver(self, outputs: Sequence[RequestOutput]) -> None:
        for output in outputs:
            work = self._running.pop(output.request_id, None)
            if work is None:
                continue
            del self._hashes.prompts[work.name]
            steps = steps_of(output)
            work.usage.requests += 1
            work.usage.asked += len(work.prompt)
            work.usage.cached += output.num_cached_tokens or 0
            work.usage.decoded += len(steps) - 1
            _tell(work, steps)

    def _fail_all(self, death: BaseException) -> None:
        waiting = list(self._running.values())
        while not self._inbox.empty():
            item = self._inbox.get()
            waiting += [item] if isinstance(item, _Rollout) else []
        for work in waiting:
            _tell(work, EngineDied(f"the engine has stopped: {death!r}"))


def _tell(work: _Rollout, outcome: list[Step] | Exception) -> None:
    with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
        work.loop.call_soon_threadsafe(_settle, work.outcome, outcome)


def _settle(future: asyncio.Future[list[Step]], outcome: list[Step] | Exception) -> None:
    if future.done():  # its caller was cancelled meanwhile
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
