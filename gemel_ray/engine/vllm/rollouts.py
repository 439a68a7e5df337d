"""Rollouts as vLLM requests: made, added, aborted and finished in the engine's thread."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gemel_ray.engine.vllm.starting import step
from gemel_ray.engine.work import Outcome, Prompt, RolloutOptions, Step, Usage

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine


def sampling(asked: RolloutOptions, prompt: int, end_token: int) -> SamplingParams:
    """The parameters of vLLM for a rollout; `prompt`: its number in PrefixHashes."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=asked.limit,
        logprobs=asked.wide,
        flat_logprobs=True,
        detokenize=False,
        ignore_eos=True,
        stop_token_ids=[end_token],
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args={
            "prompt": prompt,
            "tree": str(asked.tree),
            "tree_node": asked.node,
            "tree_renormalise": asked.renormalise,
            "keep": asked.keep,
            "after": list(asked.after),
        },
    )


def holds(engine: LLMEngine) -> Any:
    """The scheduler's instance of holds.Holds."""
    core: Any = engine.engine_core
    return core.engine_core.scheduler.connector


class PrefixHashes:
    """The hashes of a prompt's blocks for vLLM's prefix cache: of the prompt's identity, chained over all
    blocks before.

    vLLM would hash the embeddings of every request: for a beam that leaves the path, the whole prompt again
    (18 MB per mention for five beams of an OPT-6.7B). These hashes stay with the prompt.
    """

    def __init__(self, engine: LLMEngine) -> None:
        self.prompts: dict[int, Prompt] = {}  # in progress
        self.hashed = 0  # bytes
        core: Any = engine.engine_core
        self._block = core.engine_core.scheduler.kv_cache_manager.block_pool.hash_block_size
        core.engine_core.request_block_hasher = self

    def __call__(self, request: Any) -> list[bytes]:
        """The hashes of the request's whole blocks that it does not have yet."""
        prompt = self.prompts[request.sampling_params.extra_args["prompt"]]
        known: list[bytes] = request.block_hashes
        made: list[bytes] = []
        while (end := (len(known) + len(made) + 1) * self._block) <= request.num_tokens:
            number = len(known) + len(made)
            if number == len(prompt.hashes) or end > len(prompt):
                before = made[-1] if made else known[-1] if known else b""
                whole = self._hash(before, self._tokens(request, prompt, end))
                if end <= len(prompt):
                    prompt.hashes.append(whole)
            else:
                whole = prompt.hashes[number]
            made.append(whole)
        return made

    def _tokens(self, request: Any, prompt: Prompt, end: int) -> bytes:
        start, length = end - self._block, len(prompt)
        written = request.all_token_ids[max(start, length) : end] if end > length else []
        return np.append(prompt.identity[start : min(end, length)], np.array(written, np.int64)).tobytes()

    def _hash(self, before: bytes, block: bytes) -> bytes:
        self.hashed += len(before) + len(block)
        return hashlib.sha256(before + block).digest()


def steps_of(output: RequestOutput) -> list[Step]:
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


@dataclass(slots=True)
class Rollout:
    """A request, named by a number; `params` are vLLM's, `keep`: see RolloutOptions."""

    name: int
    prompt: Prompt
    keep: int
    params: Any
    outcome: Outcome[list[Step]]
    usage: Usage

    @property
    def request(self) -> str:
        return str(self.name)


class Rollouts:
    """The rollouts in progress."""

    def __init__(self, engine: LLMEngine) -> None:
        self._engine, self.hashes, self.holds = engine, PrefixHashes(engine), holds(engine)
        self.running: dict[str, Rollout] = {}

    def add(self, work: Rollout) -> None:
        self.hashes.prompts[work.name] = work.prompt
        if work.keep:
            self.holds.open(work.keep)
        try:
            self._engine.add_request(work.request, {"prompt_embeds": work.prompt.embeddings}, work.params)
        except ValueError as refusal:  # this prompt is invalid; the engine works
            del self.hashes.prompts[work.name]
            work.outcome.settle(refusal)
            return
        self.running[work.request] = work

    def abort(self, request: str) -> None:
        if (work := self.running.pop(request, None)) is not None:
            self._engine.abort_request([request])
            del self.hashes.prompts[work.name]

    def step(self) -> None:
        """Make a step of vLLM, and settle the finished rollouts."""
        self._deliver([output for output in step(self._engine) if output.finished])

    def _deliver(self, outputs: Sequence[RequestOutput]) -> None:
        for output in outputs:
            work = self.running.pop(output.request_id, None)
            if work is None:
                continue
            del self.hashes.prompts[work.name]
            steps = steps_of(output)
            work.usage.requests += 1
            work.usage.asked += len(work.prompt)
            work.usage.cached += output.num_cached_tokens or 0
            work.usage.decoded += len(steps) - 1
            work.outcome.settle(steps)
