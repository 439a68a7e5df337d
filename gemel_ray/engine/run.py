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
import itertools
import os
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from vllm import RequestOutput
    from vllm.v1.engine.llm_engine import LLMEngine

# Each was measured to matter on a machine without a GPU (docs/performance.md): the engine in this
# process starts in 12 s instead of 76 s, threads are left where they are, and returning log-probabilities
# compiles no kernel for each new batch size.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TORCH_COMPILE_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_EMBED_CHUNK = 8192


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How vLLM is started. Sizes in tokens unless said."""

    model: str
    dtype: str = "bfloat16"
    tensor_parallel: int = 1
    cache_gib: float = 2.0  # for the CPU backend's key-value cache
    gpu_memory: float = 0.9  # fraction of a GPU's memory, weights and cache together
    block: int = 32  # prefix caching reuses whole blocks only: small blocks, few tokens computed twice
    batch_tokens: int = 2048  # computed at most in one step
    sequences: int = 64  # decoded at most in one step
    length: int = 2048  # of a prompt and its name, at most
    candidates: int = 16  # tokens reported a step, at least twice the beam width


@dataclass(frozen=True, slots=True)
class Step:
    """What the model gives at one node: the allowed tokens, best first, and their log-probabilities."""

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]


@dataclass(slots=True)
class Usage:
    """Prompt tokens asked of the engine, and those of them found in its prefix cache; decode steps."""

    asked: int = 0
    cached: int = 0
    decoded: int = 0
    requests: int = 0


@dataclass(slots=True)
class _Rollout:
    prompt: torch.Tensor
    params: Any
    loop: asyncio.AbstractEventLoop
    outcome: asyncio.Future[list[Step]]
    usage: Usage
    request: str = ""


class EngineDied(RuntimeError):
    """The engine's thread has ended; the process must be replaced."""


class Engine:
    """A running vLLM engine under one prefix tree. Thread-safe; `close()` when done."""

    def __init__(self, options: EngineOptions, tree: Path, end_token: int) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, round(options.cache_gib))))
        self.options, self.end_token = options, end_token
        self._engine = _start(options, tree)
        self._embeddings = self._embedding_table()
        self._names = itertools.count()
        self._inbox: queue.SimpleQueue[_Rollout | str | None] = queue.SimpleQueue()
        self._running: dict[str, _Rollout] = {}
        self._death: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def dtype(self) -> torch.dtype:
        """Of the language model's embeddings, and so of every prompt."""
        return self._embeddings.dtype

    @property
    def width(self) -> int:
        """Of the language model's embeddings."""
        return self._embeddings.shape[1]

    @property
    def alive(self) -> bool:
        return self._death is None

    def embed(self, tokens: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Embeddings of token ids, [tokens, width]."""
        return self._embeddings[torch.as_tensor(np.asarray(tokens, dtype=np.int64))]

    async def rollout(
        self, prompt: torch.Tensor, node: int, limit: int, renormalise: bool, usage: Usage
    ) -> list[Step]:
        """Continue `prompt` ([tokens, width]) greedily from `node` until a name ends or `limit` tokens.

        Returns one Step a token. The greedy path itself is each step's first token. Cancelling the
        caller aborts the request. Raises ValueError for a prompt that is too long, EngineDied when
        the engine is gone.
        """
        if len(prompt) + limit > self.options.length:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens and names up to {limit}, but the engine takes "
                f"{self.options.length}: lower retrieve.demonstrations or raise generate.length"
            )
        self._check_alive()
        loop = asyncio.get_running_loop()
        work = _Rollout(prompt, self._params(node, limit, renormalise), loop, loop.create_future(), usage)
        work.request = str(next(self._names))
        self._inbox.put(work)
        if self._death is not None:  # died between the check and the put: nobody will read the inbox
            self._check_alive()
        try:
            return await work.outcome
        except asyncio.CancelledError:
            self._inbox.put(work.request)
            raise

    def close(self) -> None:
        """Stop the thread and free the engine. Rollouts under way fail with EngineDied."""
        self._inbox.put(None)
        self._thread.join(timeout=60)

    def _check_alive(self) -> None:
        if self._death is not None:
            raise EngineDied(f"the engine has stopped: {self._death!r}") from self._death

    def _params(self, node: int, limit: int, renormalise: bool) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=0.0,
            max_tokens=limit,
            logprobs=self.options.candidates,
            flat_logprobs=True,
            detokenize=False,
            ignore_eos=True,
            stop_token_ids=[self.end_token],
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={"tree_node": node, "tree_renormalise": renormalise},
        )

    def _embedding_table(self) -> torch.Tensor:
        """The model's own input embeddings, [vocabulary, width], asked of the model itself: right for
        every architecture, scaled embeddings and tensor parallelism included."""
        vocabulary = self._engine.model_config.get_vocab_size()
        parts = []
        for start in range(0, vocabulary, _EMBED_CHUNK):
            ids = range(start, min(start + _EMBED_CHUNK, vocabulary))
            parts.append(self._engine.apply_model(_Embed(ids))[0])
        return torch.cat(parts)

    def _run(self) -> None:
        try:
            while self._admit():
                finished = [out for out in self._engine.step() if out.finished]
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
            if isinstance(item, str):
                self._abort(item)
            else:
                self._add(item)

    def _add(self, work: _Rollout) -> None:
        try:
            self._engine.add_request(work.request, {"prompt_embeds": work.prompt}, work.params)
        except ValueError as refusal:  # this prompt's fault, not the engine's
            work.loop.call_soon_threadsafe(_settle, work.outcome, refusal)
            return
        self._running[work.request] = work

    def _abort(self, request: str) -> None:
        if self._running.pop(request, None) is not None:
            self._engine.abort_request([request])

    def _deliver(self, outputs: Sequence[RequestOutput]) -> None:
        for output in outputs:
            work = self._running.pop(output.request_id, None)
            if work is None:
                continue
            steps = _steps(output)
            work.usage.requests += 1
            work.usage.asked += len(work.prompt)
            work.usage.cached += output.num_cached_tokens or 0
            work.usage.decoded += len(steps) - 1
            work.loop.call_soon_threadsafe(_settle, work.outcome, steps)

    def _fail_all(self, death: BaseException) -> None:
        waiting = list(self._running.values())
        while not self._inbox.empty():
            item = self._inbox.get()
            waiting += [item] if isinstance(item, _Rollout) else []
        for work in waiting:
            error = EngineDied(f"the engine has stopped: {death!r}")
            work.loop.call_soon_threadsafe(_settle, work.outcome, error)


class _Embed:
    """A question to the model in its worker process: picklable, unlike a lambda."""

    def __init__(self, ids: range) -> None:
        self.ids = ids

    def __call__(self, model: Any) -> torch.Tensor:
        device = next(model.parameters()).device
        with torch.inference_mode():
            table: torch.Tensor = model.embed_input_ids(torch.tensor(list(self.ids), device=device))
        return table.cpu().clone()


def _settle(future: asyncio.Future[list[Step]], outcome: list[Step] | Exception) -> None:
    if future.done():  # its caller was cancelled meanwhile
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _steps(output: RequestOutput) -> list[Step]:
    """The finite log-probabilities of every generated position, best first."""
    flat: Any = output.outputs[0].logprobs
    steps = []
    for start, end in zip(flat.start_indices, flat.end_indices, strict=True):
        best = {
            token: score
            for token, score in zip(flat.token_ids[start:end], flat.logprobs[start:end], strict=True)
            if score > -1e30
        }
        ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))
        steps.append(Step(tuple(t for t, _ in ranked), tuple(s for _, s in ranked)))
    return steps


def _start(options: EngineOptions, tree: Path) -> LLMEngine:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    arguments = EngineArgs(
        model=options.model,
        dtype=options.dtype,  # type: ignore[arg-type]
        enable_prompt_embeds=True,
        enable_prefix_caching=True,
        skip_tokenizer_init=True,
        tensor_parallel_size=options.tensor_parallel,
        distributed_executor_backend="uni" if options.tensor_parallel == 1 else None,
        enforce_eager=not torch.cuda.is_available(),
        block_size=options.block,  # type: ignore[arg-type]
        max_num_batched_tokens=max(options.batch_tokens, options.sequences),
        max_num_seqs=options.sequences,
        max_model_len=options.length,
        gpu_memory_utilization=options.gpu_memory,
        max_logprobs=options.candidates,
        logprobs_mode="processed_logits",
        # The V1 constraint walks the tokens sampled so far: they must be there when it is called.
        async_scheduling=False,
        disable_log_stats=True,
        additional_config={"prefix_tree": str(tree)},
    )
    config = arguments.create_engine_config()
    runner = "V2" if config.use_v2_model_runner else "V1"
    config.model_config.logits_processors = [f"gemel_ray.engine.constraint:TreeConstraint{runner}"]
    return LLMEngine.from_vllm_config(config, disable_log_stats=True)
