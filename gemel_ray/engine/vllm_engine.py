"""What vLLM is asked and what it answers: how an engine is started, a rollout's parameters, its steps.

Together with constraint.py all that knows vLLM's interfaces; run.py is the loop around them.
"""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from gemel_ray.engine.prompts import Prompt
from gemel_ray.models.tokenizer import longest_context

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine

# Each was measured to matter on a machine without a GPU: the engine in this
# process starts in 12 s instead of 76 s, and threads are left where they are.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output is for results
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # nothing is sampled, and it would be compiled at start
}
_EMBED_CHUNK = 8192
_MOST_IN_A_GRAPH = 512  # sequences


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
    sequences: int = 256  # decoded at most in one step
    length: int = 4096  # of a prompt and its name, at most; less where the model takes less
    rounds: Literal["auto", "always", "never"] = "auto"  # see opening.py
    arena: float = 0.6  # share of the cache that rounds have to themselves
    columns: int = 64  # mentions searched at once in rounds
    beams: int = 5  # of each
    shared_attention: Literal["auto", "always", "never"] = "never"  # see shared_prefix.py


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
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        _compile_nothing()

    from vllm.config import KVTransferConfig
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    gc.freeze()  # vLLM collects five times while it starts: what was imported is no garbage
    arguments = EngineArgs(
        model=options.model,
        dtype=options.dtype,  # type: ignore[arg-type]
        enable_prompt_embeds=True,
        enable_prefix_caching=True,
        skip_tokenizer_init=True,
        tensor_parallel_size=options.tensor_parallel,
        distributed_executor_backend="uni" if options.tensor_parallel == 1 else None,
        enforce_eager=not on_gpu,
        compilation_config=_graphs(options.sequences) if on_gpu else {},  # type: ignore[arg-type]
        block_size=options.block,  # type: ignore[arg-type]
        max_num_batched_tokens=max(options.batch_tokens, options.sequences),
        max_num_seqs=options.sequences,
        max_model_len=min(options.length, longest_context(options.model)),
        gpu_memory_utilization=options.gpu_memory,
        max_logprobs=-1,  # exact search asks for whole nodes where it has to
        logprobs_mode="processed_logits",
        # The V1 constraint walks the tokens sampled so far: they must be there when it is called.
        async_scheduling=False,
        disable_log_stats=True,
        kv_transfer_config=KVTransferConfig(
            kv_connector="Holds", kv_connector_module_path="gemel_ray.engine.holds", kv_role="kv_both"
        ),
    )
    config = arguments.create_engine_config()
    runner = "V2" if config.use_v2_model_runner else "V1"
    config.model_config.logits_processors = [f"gemel_ray.engine.constraint:TreeConstraint{runner}"]
    return LLMEngine.from_vllm_config(config, disable_log_stats=True)


def _graphs(sequences: int) -> dict[str, Any]:
    """On a GPU, decoding by CUDA graphs of few sizes, and nothing compiled: a start of 12 seconds, not 60."""
    sizes = [1 << i for i in range(min(sequences, _MOST_IN_A_GRAPH).bit_length())]
    return {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": sizes}


def _compile_nothing() -> None:
    """Without a GPU, vLLM would still have a kernel compiled to count ranks among log-probabilities: seconds
    before the first answer, and a C++ compiler. vLLM heeds the first variable; torch has read that long ago,
    but the second whenever something is to be compiled."""
    for name in ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"):
        os.environ.setdefault(name, "1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A rollout: greedy from `node` of the prefix tree in the folder `tree` until a name ends or `limit`
    tokens, reporting the `wide` best tokens of every step. `keep` and `behind`: see holds.py."""

    tree: Path
    node: int
    limit: int
    wide: int
    renormalise: bool = True
    keep: int = 0
    behind: Sequence[tuple[int, int]] = ()


def sampling(asked: Asked, prompt: int, end_token: int) -> SamplingParams:
    """What vLLM is told of a rollout; `prompt` is what PrefixHashes knows it by."""
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
            "behind": list(asked.behind),
        },
    )


def holds(engine: LLMEngine) -> Any:
    """The scheduler's instance of holds.Holds."""
    core: Any = engine.engine_core
    return core.engine_core.scheduler.connector


class PrefixHashes:
    """How vLLM's prefix cache knows a block of a prompt: by the prompt's identity, chained over all before.

    vLLM itself hashes the embeddings of every request anew: for a beam that leaves the path, the whole
    prompt once more (18 MB a mention for five beams of an OPT-6.7B). What was hashed stays with the prompt.
    """

    def __init__(self, engine: LLMEngine) -> None:
        self.prompts: dict[int, Prompt] = {}  # under way
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
