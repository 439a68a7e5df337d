"""Whether an engine searches in rounds: what they need is found, taken and tried before the first prompt."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gemel_ray.engine.arena import Arena
from gemel_ray.engine.proof import prove
from gemel_ray.engine.rollouts import Rollouts
from gemel_ray.engine.rounds import Rounds
from gemel_ray.engine.seam import Refused, Seam, give_back, reserve, seam
from gemel_ray.engine.shared_prefix import shared_prefix

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

    from gemel_ray.engine.vllm_engine import EngineOptions

_log = logging.getLogger(__name__)


def opened(
    engine: LLMEngine, rollouts: Rollouts, options: EngineOptions, embeddings: Tensor, end_token: int
) -> Rounds | None:
    """None where searches are made of rollouts: `rounds` is never, or auto and vLLM or the model refuses."""
    if options.rounds == "never":
        return None
    try:
        met = seam(engine)
        blocks = reserve(engine, _share(engine, met, options))
        try:
            return _tried(met, blocks, options, partial(prove, rollouts, embeddings, end_token))
        except BaseException:
            give_back(engine, blocks)
            raise
    except Refused as reason:
        if options.rounds == "always":
            raise
        _log.warning("beams are searched by rollouts, which is slower: %s", reason)
        return None


def _tried(met: Seam, blocks: list[int], options: EngineOptions, try_: Callable[[Rounds], None]) -> Rounds:
    """Rounds that have been tried; on a GPU with CUDA graphs and shared attention, or else without."""

    def made(replayed: bool) -> Rounds:
        arena = Arena(blocks, met.block)
        parts = 1 if met.device.type == "cpu" else 2
        rounds = Rounds(met, arena, options.columns, options.beams, parts=parts, replayed=replayed)
        try:
            try_(rounds)
        except Refused:
            raise
        except Exception as fault:  # of any kind: it is vLLM's inside that is called
            raise Refused(f"a search on trial failed: {fault!r}") from fault
        return rounds

    if met.device.type != "cuda":
        return made(False)
    if options.shared_attention != "never":
        try:
            met.shared = shared_prefix(met, options.shared_attention)
            with met.shared.wherever_it_can():
                return made(True)
        except Refused as reason:
            met.shared = None
            _log.info("each beam reads the demonstrations for itself: %s", reason)
    try:
        return made(True)
    except Refused as reason:
        _log.warning("rounds go on without CUDA graphs: %s", reason)
        return made(False)


def _share(engine: LLMEngine, met: Seam, options: EngineOptions) -> int:
    """Blocks that rounds get. What is left must hold the longest prompt, or vLLM waits for ever."""
    config: Any = engine.vllm_config.cache_config
    longest = -(-met.length // met.block)
    number = min(int(config.num_gpu_blocks * options.arena), config.num_gpu_blocks - longest - 2)
    if number < longest:
        raise Refused("the key-value cache has no room for rounds beside rollouts")
    return number
