"""The internals of vLLM that the rounds use: the worker's model, its attention and its key-value cache.

Checked with vLLM 0.32; both of its model runners have these names. They are checked by name and signature
here, and by numbers when the engine starts (opening.py). If vLLM has changed, or a model has another kind of
cache, `Refused` gives the reason, and searches are made of rollouts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

Whole = npt.NDArray[np.int64]
_RUNNER = ("attn_groups", "device", "kv_cache_config", "kv_caches", "max_num_tokens", "model", "vllm_config")
_METADATA = (
    "attn_groups", "num_reqs", "num_tokens", "query_start_loc_gpu", "query_start_loc_cpu", "max_query_len",
    "seq_lens", "max_seq_len", "block_tables", "slot_mappings", "kv_cache_config", "seq_lens_cpu_upper_bound",
)  # fmt: skip


class Sharing(Protocol):
    """Computes the common beginning of a pass's rows once (shared_prefix.py). `passes`: the number of such
    passes."""

    passes: int

    def split(self, blocks: int, queries: int, table: Tensor, lengths: Tensor, longest: int) -> Any:
        """The pass in two parts; None if that does not pay."""


class Refused(RuntimeError):
    """The rounds do not support this model, or this vLLM."""


class Seam:
    """The connection to a worker of vLLM, which calls this class with it: see `seam`."""

    def __init__(self, worker: Any) -> None:
        from vllm.forward_context import set_forward_context
        from vllm.v1.worker.gpu.attn_utils import build_attn_metadata, build_slot_mappings_by_layer

        runner = getattr(worker, "worker", worker).model_runner
        if missing := [name for name in _RUNNER if not hasattr(runner, name)]:
            raise Refused(f"vLLM's model runner has no {', '.join(missing)}")
        _takes(build_attn_metadata, _METADATA)
        _takes(build_slot_mappings_by_layer, ("slot_mappings", "kv_cache_config"))
        _takes(set_forward_context, ("attn_metadata", "vllm_config", "num_tokens", "slot_mapping"))
        self._context, self._metadata = set_forward_context, build_attn_metadata
        self._by_layer = build_slot_mappings_by_layer
        self._config, self._cache_config, self._groups = (
            runner.vllm_config, runner.kv_cache_config, runner.attn_groups,
        )  # fmt: skip
        _check_model(self._config)
        self.caches = _caches(runner)
        self.model, self.device = runner.model, runner.device
        self._items = [_items(*cache) for cache in self.caches] if self.device.type == "cpu" else []
        self.block = int(self._config.cache_config.block_size)
        self.tokens = self.rows = int(runner.max_num_tokens)  # of one pass, at most
        if self.device.type != "cpu":
            self.rows = _rows(self._config)
        # Only a CPU computes some of the logits: it need not wait for their number, and gains by it.
        self.output = _output_weights(self.model) if self.device.type == "cpu" else None
        self.length = int(self._config.model_config.max_model_len)
        self.passes = 0
        self.shared: Sharing | None = None

    def attention(self) -> list[Any]:
        """vLLM's implementation of attention in every layer."""
        layers = self._config.compilation_config.static_forward_context
        return [
            layers[name].impl for groups in self._groups for group in groups for name in group.layer_names
        ]

    def upload(self, *arrays: npt.NDArray[Any]) -> list[Tensor]:
        """The arrays, which are of one type, on the device, in one copy for which the host does not wait."""
        whole = self.send(torch.from_numpy(np.concatenate([array.ravel() for array in arrays])))
        parts = whole.split([array.size for array in arrays])
        return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]

    def send(self, tensor: Tensor) -> Tensor:
        """A tensor of the host on the device; the host does not wait for the copy."""
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def embed(self, tokens: Tensor) -> Tensor:
        """The model's input embeddings, [tokens, width]."""
        made: Tensor = self.model.embed_input_ids(tokens)
        return made

    def logits(self, hidden: Tensor, tokens: Tensor | None = None) -> Tensor:
        """[n, vocabulary]; of these `tokens` only, if given: needs `output`."""
        if tokens is not None and self.output is not None:
            return torch.nn.functional.linear(hidden, self.output[tokens])
        made: Tensor = self.model.compute_logits(hidden)
        return made

    def forward(
        self, embeddings: Tensor, start: Whole, count: Whole, table: npt.NDArray[np.int32], alike: int = 0
    ) -> Tensor:
        """The hidden states of each row's last token, [rows, width].

        Row i computes `count[i]` tokens of `embeddings` [tokens, width], row after row, at positions
        `start[i]` and on, in the blocks `table[i]`. All tables begin with the same `alike` blocks, which are
        computed already."""
        ends, row = np.cumsum(count), np.repeat(np.arange(len(count)), count)
        position = np.arange(len(row)) + (start - ends + count)[row]
        slot = table[row, position // self.block] * np.int64(self.block) + position % self.block
        begins, lengths = np.append(0, ends).astype(np.int32), (start + count).astype(np.int32)
        positions, slots, last = self.upload(position, slot, ends - 1)
        blocks, begin, length = self.upload(table, begins, lengths)
        metadata = self._metadata(
            attn_groups=self._groups,
            num_reqs=len(count),
            num_tokens=len(row),
            query_start_loc_gpu=begin,
            query_start_loc_cpu=torch.from_numpy(begins),
            max_query_len=int(count.max()),
            seq_lens=length,
            max_seq_len=int(lengths.max()),
            block_tables=[blocks],
            slot_mappings=slots[None],
            kv_cache_config=self._cache_config,
            seq_lens_cpu_upper_bound=torch.from_numpy(lengths),
        )
        if self.shared is not None:
            split = self.shared.split(alike, len(row), blocks, length, int(lengths.max()))
            for of_layers in metadata.values():
                of_layers.split = split
        by_layer = self._by_layer(slots[None], self._cache_config)
        with self._context(metadata, self._config, num_tokens=len(row), slot_mapping=by_layer):
            hidden: Tensor = self.model(
                input_ids=None, positions=positions, intermediate_tensors=None, inputs_embeds=embeddings
            )
        self.passes += 1
        return hidden[last]

    def copy(self, blocks: npt.NDArray[np.int64]) -> None:
        """Copy blocks [n, 2], from and to, in every layer: whole blocks, since backends order their content
        differently."""
        if self.device.type == "cpu":
            for items in self._items:
                items[blocks[:, 1]] = items[blocks[:, 0]]
            return
        source, target = self.upload(*np.ascontiguousarray(blocks.T))
        for cache, dim in self.caches:
            cache.index_copy_(dim, target, cache.index_select(dim, source))


def seam(engine: LLMEngine) -> Seam:
    """The connection to a started engine. Raises Refused."""
    if engine.vllm_config.parallel_config.world_size > 1:
        raise Refused("the model is spread over several GPUs")
    try:
        (made,) = engine.collective_rpc(Seam)
    except (ImportError, AttributeError, TypeError) as moved:
        raise Refused(f"vLLM has changed: {moved}") from moved
    assert isinstance(made, Seam)
    return made


def reserve(engine: LLMEngine, number: int) -> list[int]:
    """Take `number` blocks of vLLM's pool from its scheduler."""
    core: Any = engine.engine_core
    try:
        pool = core.engine_core.scheduler.kv_cache_manager.block_pool
        blocks = [block.block_id for block in pool.get_new_blocks(number)]
        pool.num_gpu_blocks -= number  # else they count as used, and the prefix cache cannot be reset
    except (AttributeError, TypeError) as moved:
        raise Refused(f"vLLM's pool of blocks has changed: {moved}") from moved
    return blocks


def give_back(engine: LLMEngine, blocks: list[int]) -> None:
    """Return the blocks to the pool."""
    core: Any = engine.engine_core
    pool = core.engine_core.scheduler.kv_cache_manager.block_pool
    pool.num_gpu_blocks += len(blocks)
    pool.free_blocks([pool.blocks[i] for i in blocks])


def _takes(function: Callable[..., Any], given: tuple[str, ...]) -> None:
    """Check that a function can be called with these arguments, and needs no others."""
    known = inspect.signature(function).parameters
    needed = {n for n, p in known.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    if wrong := needed.symmetric_difference(given) - (known.keys() & set(given)):
        raise Refused(f"vLLM's {function.__name__} has other arguments: {', '.join(sorted(wrong))}")


def _rows(config: Any) -> int:
    """The rows of a pass: at most as many as FlashAttention prepares for on a GPU."""
    captured = config.compilation_config.max_cudagraph_capture_size or 0
    return max(int(config.scheduler_config.max_num_seqs), int(captured))


def _check_model(config: Any) -> None:
    model = config.model_config
    if model.uses_mrope or model.is_encoder_decoder or config.lora_config is not None:
        raise Refused("the model's prompts are more than one row of embeddings")


@torch.inference_mode()
def _output_weights(model: Any) -> Tensor | None:
    """The output weights, [vocabulary or more, width], if logits are their product with hidden states and
    nothing else: no bias, scale or cap, no quantized weights."""
    weight = getattr(getattr(model, "lm_head", None), "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        return None
    # Zeros show a bias; numbers greater than any model's show a cap.
    hidden = weight.new_zeros(2, weight.shape[1])
    hidden[1] = weight[0] * (1000 / weight[0].float().square().sum())
    expected, product = model.compute_logits(hidden).float(), (hidden @ weight.T).float()
    product = product[:, : expected.shape[1]]
    alike = torch.allclose(expected, product, rtol=0.0, atol=0.01 * float(product.abs().max()))
    return weight.detach() if alike and not expected[0].any() else None


def _caches(runner: Any) -> list[tuple[Tensor, int]]:
    """The cache of every layer, and the dimension of its blocks."""
    config = runner.kv_cache_config
    groups = [group for groups in runner.attn_groups for group in groups]
    if len(config.kv_cache_groups) != 1 or len(groups) != 1:
        raise Refused("the model has more than one kind of attention")
    kind, window = groups[0].kv_cache_spec, getattr(groups[0].kv_cache_spec, "sliding_window", None)
    if type(kind).__name__ != "FullAttentionSpec" or window is not None:
        raise Refused(f"the model's attention is not plain: {type(kind).__name__}")
    distinct = {cache.data_ptr(): cache for cache in runner.kv_caches}.values()
    if groups[0].kernel_block_size is not None or any(config.num_blocks not in c.shape for c in distinct):
        raise Refused("the layout of the key-value cache is unknown")
    return [(cache, list(cache.shape).index(config.num_blocks)) for cache in distinct]


def _items(cache: Tensor, dim: int) -> npt.NDArray[np.void]:
    """A cache on the CPU as an array of blocks, which are copied nine times faster than by torch."""
    if dim or not cache.is_contiguous():
        raise Refused("the layout of the key-value cache is unknown")
    blocks = cache.view(torch.uint8).view(len(cache), -1).numpy()
    return blocks.view(f"V{blocks.shape[1]}")[:, 0]
