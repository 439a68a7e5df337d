"""What vLLM is asked and what it answers: how an engine is started, a rollout's parameters, its steps.

Together with constraint.py all that knows vLLM's interfaces; run.py is the loop around them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine

# Each was measured to matter on a machine without a GPU: the engine in this
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
    length: int = 4096  # of a prompt and its name, at most; less where the model takes less
    candidates: int = 16  # tokens reported a step, at least twice the beam width


@dataclass(frozen=True, slots=True)
class Step:
    """What the model gives at one node: the allowed tokens, best first, and their log-probabilities."""

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]


def start(options: EngineOptions) -> LLMEngine:
    """A started engine. Its model runner decides which interface the constraint has to have."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, round(options.cache_gib))))

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
        max_model_len=min(options.length, _longest(options.model)),
        gpu_memory_utilization=options.gpu_memory,
        max_logprobs=-1,  # exact search asks for more than `candidates` where it has to
        logprobs_mode="processed_logits",
        # The V1 constraint walks the tokens sampled so far: they must be there when it is called.
        async_scheduling=False,
        disable_log_stats=True,
    )
    config = arguments.create_engine_config()
    runner = "V2" if config.use_v2_model_runner else "V1"
    config.model_config.logits_processors = [f"gemel_ray.engine.constraint:TreeConstraint{runner}"]
    return LLMEngine.from_vllm_config(config, disable_log_stats=True)


def _longest(model: str) -> int:
    from transformers import AutoConfig

    return int(getattr(AutoConfig.from_pretrained(model), "max_position_embeddings", 1 << 30))


def sampling(
    tree: Path, node: int, limit: int, wide: int, renormalise: bool, end_token: int
) -> SamplingParams:
    """What vLLM is told of a rollout: greedy from `node` of the tree in the folder `tree`, the `wide` best
    tokens reported a step."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=limit,
        logprobs=wide,
        flat_logprobs=True,
        detokenize=False,
        ignore_eos=True,
        stop_token_ids=[end_token],
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args={"tree": str(tree), "tree_node": node, "tree_renormalise": renormalise},
    )


def embedding_table(engine: LLMEngine) -> torch.Tensor:
    """The model's own input embeddings, [vocabulary, width], asked of the model itself: right for every
    architecture, scaled embeddings and tensor parallelism included."""
    vocabulary = engine.model_config.get_vocab_size()
    chunks = [range(i, min(i + _EMBED_CHUNK, vocabulary)) for i in range(0, vocabulary, _EMBED_CHUNK)]
    return torch.cat([engine.apply_model(_Embed(ids))[0] for ids in chunks])


class _Embed:
    """A question to the model in its worker process: picklable, unlike a lambda."""

    def __init__(self, ids: range) -> None:
        self.ids = ids

    def __call__(self, model: Any) -> torch.Tensor:
        device = next(model.parameters()).device
        with torch.inference_mode():
            table: torch.Tensor = model.embed_input_ids(torch.tensor(list(self.ids), device=device))
        return table.cpu().clone()


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
