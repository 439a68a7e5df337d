"""Rollouts as vLLM's requests: added, aborted and told by the engine's thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemel_ray.engine.outcome import Outcome
from gemel_ray.engine.prompts import Prompt
from gemel_ray.engine.usage import Usage
from gemel_ray.engine.vllm_engine import PrefixHashes, Step, holds, steps_of

if TYPE_CHECKING:
    from vllm import RequestOutput
    from vllm.v1.engine.llm_engine import LLMEngine


@dataclass(slots=True)
class Rollout:
    """Requests are named by numbers; `params` are vLLM's, `keep` as of Asked."""

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
    """Those under way."""

    def __init__(self, engine: LLMEngine) -> None:
        self._engine, self.hashes, self.holds = engine, PrefixHashes(engine), holds(engine)
        self.running: dict[str, Rollout] = {}

    def add(self, work: Rollout) -> None:
        self.hashes.prompts[work.name] = work.prompt
        if work.keep:
            self.holds.open(work.keep)
        try:
            self._engine.add_request(work.request, {"prompt_embeds": work.prompt.embeddings}, work.params)
        except ValueError as refusal:  # this prompt's fault, not the engine's
            del self.hashes.prompts[work.name]
            work.outcome.tell(refusal)
            return
        self.running[work.request] = work

    def abort(self, request: str) -> None:
        if (work := self.running.pop(request, None)) is not None:
            self._engine.abort_request([request])
            del self.hashes.prompts[work.name]

    def step(self) -> None:
        """One of vLLM's; who is done is told."""
        self._deliver([output for output in self._engine.step() if output.finished])

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
            work.outcome.tell(steps)
