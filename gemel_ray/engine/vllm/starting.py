"""Starts and ends vLLM, and reads the embeddings of its model."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from gemel_ray.models.encoders import language_config, longest_context

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

_log = logging.getLogger(__name__)
# Each has a measured effect on a machine without a GPU: the engine in this process starts in 12 s instead of
# 76 s, and threads are not pinned.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output is for results
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # nothing is sampled; it would be compiled at start
}
# vLLM's process groups belong to the process, not to an engine: one engine at a time starts or ends. The
# trial of a start makes steps in another thread, so steps have another lock.
_starting_or_ending = threading.RLock()
_turn = threading.RLock()  # an engine is made or ended, or makes a step of vLLM
# By the id of their engine, the connectors (holds.py) of the workers in this process.
_running: dict[int, Any] = {}
_EMBED_CHUNK = 8192
_MOST_IN_A_GRAPH = 512  # sequences


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The options with which vLLM is started. Sizes are in tokens unless another unit is given."""

    model: str
    dtype: str = "bfloat16"
    tensor_parallel: int = 1
    cache_gib: float = 2.0  # for the CPU backend's key-value cache
    gpu_memory: float = 0.9  # fraction of a GPU's memory, weights and cache together
    block: int = 32  # prefix caching reuses whole blocks only: small blocks, few tokens computed twice
    batch_tokens: int = 2048  # computed at most in one step
    sequences: int = 256  # decoded at most in one step
    length: int = 4096  # of a prompt and its name, at most; less if the model's context is shorter
    rounds: Literal["auto", "always", "never"] = "auto"  # see opening.py
    arena: float = 0.6  # share of the cache that only rounds use
    columns: int = 128  # mentions searched at once in rounds
    beams: int = 5  # of each
    shared_attention: Literal["auto", "always", "never"] = "never"  # see shared_prefix.py


def imported(options: EngineOptions) -> None:
    """Import vLLM, which takes seconds: before `alone`, in which engines wait for each other."""
    _set_environment(options, on_gpu := torch.cuda.is_available())
    import vllm.v1.engine.llm_engine  # noqa: F401

    if on_gpu:
        import gemel_ray.engine.vllm.worker  # noqa: F401


def start(options: EngineOptions) -> LLMEngine:
    """Start an engine, after `imported`. Its model runner decides which interface of the constraint is
    used."""
    on_gpu = torch.cuda.is_available()

    from vllm.config import KVTransferConfig
    from vllm.distributed.kv_transfer import kv_transfer_state
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    gc.freeze()  # vLLM collects garbage five times while it starts: imported modules are not garbage
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
        kernel_config=_warm_up(options),  # type: ignore[arg-type]
        block_size=options.block,  # type: ignore[arg-type]
        max_num_batched_tokens=max(options.batch_tokens, options.sequences),
        max_num_seqs=options.sequences,
        max_model_len=min(options.length, longest_context(options.model)),
        gpu_memory_utilization=options.gpu_memory,
        worker_cls="gemel_ray.engine.vllm.worker.OwnMemory" if on_gpu else "auto",
        max_logprobs=-1,  # exact search may ask for whole nodes
        logprobs_mode="processed_logits",
        # The V1 constraint follows the tokens sampled so far: they must be there when it is called.
        async_scheduling=False,
        disable_log_stats=True,
        kv_transfer_config=KVTransferConfig(
            kv_connector="Holds", kv_connector_module_path="gemel_ray.engine.vllm.holds", kv_role="kv_both"
        ),
    )
    if options.tensor_parallel == 1:
        _inspect(options.model)
    config = arguments.create_engine_config()
    runner = "V2" if config.use_v2_model_runner else "V1"
    config.model_config.logits_processors = [f"gemel_ray.engine.vllm.constraint:TreeConstraint{runner}"]
    with _connector(None):
        engine = LLMEngine.from_vllm_config(config, disable_log_stats=True)
        _running[id(engine)] = kv_transfer_state._KV_CONNECTOR_AGENT
    return engine


def _set_environment(options: EngineOptions, on_gpu: bool) -> None:
    """Set what vLLM reads from the environment when it is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, round(options.cache_gib))))
    if not on_gpu:
        _compile_nothing()
    elif options.dtype == "float32":
        # FlashAttention has no float32, and Triton's attention would round to 10 bits.
        os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")


def step(engine: LLMEngine) -> list[Any]:
    """What a step of vLLM puts out. Engines of one process take turns."""
    with _connector(_running.get(id(engine))):
        return engine.step()


@contextmanager
def _connector(connector: Any) -> Iterator[None]:
    """Inside, the connector of the worker is this one. vLLM has one in a process, which would copy blocks in
    the cache of another engine, and which ends with any of them."""
    from vllm.distributed.kv_transfer import kv_transfer_state

    with _turn:
        kv_transfer_state._KV_CONNECTOR_AGENT = connector
        yield


def end(engine: LLMEngine) -> None:
    """Free the engine's memory, and what it shares with other engines of this process if it is the last. A
    failure is only logged: nobody can use the engine any more."""
    with _starting_or_ending, _connector(_running.pop(id(engine), None)):
        try:
            with _groups_kept() if _running else nullcontext():
                engine.engine_core.shutdown()
        except Exception:
            _log.warning("vLLM did not end in order", exc_info=True)


@contextmanager
def _groups_kept() -> Iterator[None]:
    """An engine that ends inside leaves vLLM's process groups as they are: without them, the other engines of
    this process fail at their next step."""
    from vllm.distributed import parallel_state

    names = ("destroy_model_parallel", "destroy_distributed_environment")
    kept = {name: getattr(parallel_state, name) for name in names}
    for name in names:
        setattr(parallel_state, name, lambda: None)
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(parallel_state, name, function)


def _inspect(model: str) -> None:
    """Read the properties of the model's class here, where it will be used. Else vLLM starts a process for
    that, which imports vLLM once more, unless a cache in the user's home knows the class: a new container
    would start 16 seconds later."""
    with suppress(ImportError, AttributeError, KeyError):  # vLLM has changed: it does it its own way
        from vllm.model_executor.models.registry import ModelRegistry, _RegisteredModel

        for name in language_config(model).architectures or ():
            made = _RegisteredModel.from_model_cls(ModelRegistry.models[name].load_model_cls())
            ModelRegistry.models[name] = made


@contextmanager
def alone() -> Iterator[None]:
    """One engine at a time starts in a process, and on a GPU: each asks whether enough memory is left, and
    the one before takes some until its graphs are recorded."""
    if not torch.cuda.is_available():
        with _starting_or_ending:
            yield
        return
    # Named after what Ray gave this process. Asking the device would begin CUDA here, which workers of an
    # engine on several GPUs cannot inherit.
    gpus = re.sub(r"\W+", "-", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    lock = Path(tempfile.gettempdir(), f"gemel-ray-{os.getuid()}-{gpus}.lock")
    with _starting_or_ending, lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _graphs(sequences: int) -> dict[str, Any]:
    """The compilation config on a GPU: CUDA graphs of few sizes, and no compilation: starts in 12 s, not
    60."""
    sizes = [1 << i for i in range(min(sequences, _MOST_IN_A_GRAPH).bit_length())]
    return {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": sizes}


def _warm_up(options: EngineOptions) -> dict[str, Any]:
    """The kernel config. In a new container vLLM would compile kernels for sampling, penalties and grammars,
    and choose among FlashInfer's: nothing uses them here. Those that are used, the trial search compiles
    (opening.py), if there is one."""
    return {"enable_jit_warmup": options.rounds == "never", "enable_flashinfer_autotune": False}


def _compile_nothing() -> None:
    """Switch compilation off. Without a GPU, vLLM would compile a kernel that counts ranks of
    log-probabilities: seconds before the first answer, and a C++ compiler. vLLM reads the first variable;
    torch has read it before, but reads the second one at every compilation."""
    for name in ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"):
        os.environ.setdefault(name, "1")


def embedding_table(engine: LLMEngine) -> torch.Tensor:
    """The model's input embeddings, [vocabulary, width], computed by the model: correct for every
    architecture, also with scaled embeddings and tensor parallelism."""
    vocabulary = engine.model_config.get_vocab_size()
    chunks = [range(i, min(i + _EMBED_CHUNK, vocabulary)) for i in range(0, vocabulary, _EMBED_CHUNK)]
    return torch.cat([engine.apply_model(_Embed(ids))[0] for ids in chunks])


class _Embed:
    """A function for the model in its worker process: picklable, unlike a lambda."""

    def __init__(self, ids: range) -> None:
        self.ids = ids

    def __call__(self, model: Any) -> torch.Tensor:
        device = next(model.parameters()).device
        with torch.inference_mode():
            table: torch.Tensor = model.embed_input_ids(torch.tensor(list(self.ids), device=device))
        return table.cpu().clone()
