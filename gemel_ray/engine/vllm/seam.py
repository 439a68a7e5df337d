"""The internals of vLLM that the rounds use: the worker's model, its attention and its key-value cache.

Checked with vLLM 0.32; both of its model runners have these names. They are checked by name and signature
here, and by numbers when the engine starts (opening.py). If vLLM has changed, or a model has another kind of
cache, `Refused` gives the reason, and searches are made of rollouts."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine

Whole = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
_ALIGNED = 8  # bytes
_DTYPES = {"int64": torch.int64, "int32": torch.int32}
_RUNNER = ("attn_groups", "device", "kv_cache_config", "kv_caches", "max_num_tokens", "model", "vllm_config")
_METADATA = (
    "attn_groups", "num_reqs", "num_tokens", "query_start_loc_gpu", "query_start_loc_cpu", "max_query_len",
    "seq_lens", "max_seq_len", "block_tables", "slot_mappings", "kv_cache_config", "seq_lens_cpu_upper_bound",
)  # fmt: skip


class Sharing(Protocol):
    """Computes the common beginning of a pass's rows once (shared_prefix.py). `passes`: the number of such
    passes, which Seam counts."""

    passes: int

    def pays(self, blocks: int, rows: int) -> bool:
        """Whether that is worth it for a pass of `rows` rows that begin with the same `blocks`."""

    def split(self, inputs: Inputs, longest: int) -> Any:
        """The pass in two parts; `longest`: the greatest length of its rows."""


class Recording(Protocol):
    """Computes passes as CUDA graphs (recorded.py)."""

    def run(self, inputs: Inputs, split: bool) -> Tensor | None:
        """The hidden states of a pass, with shared attention if it is `split`; None if it has too many
        tokens."""

    def copy(self, blocks: npt.NDArray[np.int64]) -> None:
        """Copy blocks, as Seam.copy does."""


class Inputs(NamedTuple):
    """The inputs of a pass, on the device. Row i has the tokens from `begins[i]` to `begins[i + 1]`."""

    embeddings: Tensor  # [tokens, width]
    positions: Tensor  # int64 [tokens]
    slots: Tensor  # int64 [tokens]; -1: not stored
    begins: Tensor  # int32 [rows + 1]
    lengths: Tensor  # int32 [rows]: tokens with those computed before
    table: Tensor  # int32 [rows, blocks]
    alike: Tensor  # int32 [1]: blocks with which all rows begin


class Refused(RuntimeError):
    """The rounds do not support this model, or this vLLM."""


class Seam:
    """The connection to a worker of vLLM, which calls this class with it: see `seam`. `rows`: of a pass on a
    GPU, at most."""

    def __init__(self, worker: Any, rows: int) -> None:
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
        self._config, self._cache_config = runner.vllm_config, runner.kv_cache_config
        _check_model(self._config)
        self.caches = _caches(runner)
        self.model, self.device = runner.model, runner.device
        self._items = [_items(*cache) for cache in self.caches] if self.device.type == "cpu" else []
        self.block = int(self._config.cache_config.block_size)
        self.tokens = self.rows = int(runner.max_num_tokens)  # of one pass, at most
        self._groups = runner.attn_groups
        if self.device.type != "cpu":
            self.rows = min(rows, self.tokens)
            self._groups = _groups(runner.attn_groups, self.rows, self.tokens)
        # Only a CPU computes some of the logits: it need not wait for their number, and gains by it.
        self.output = _output_weights(self.model) if self.device.type == "cpu" else None
        self.length = int(self._config.model_config.max_model_len)
        self.passes = 0
        self.shared: Sharing | None = None
        self.recorded: Recording | None = None

    def attention(self) -> list[Any]:
        """vLLM's implementation of attention in every layer."""
        layers = self._config.compilation_config.static_forward_context
        return [layers[name].impl for group in self._groups[0] for name in group.layer_names]

    @property
    def recordable(self) -> bool:
        """Whether a CUDA graph of a pass may have any rows: not with FlashAttention 2."""
        (group,) = self._groups[0]
        support = group.get_metadata_builder(0).get_cudagraph_support(self._config, group.kv_cache_spec)
        return bool(support.name == "ALWAYS")

    def upload(self, *arrays: npt.NDArray[Any]) -> list[Tensor]:
        """The arrays on the device, in one copy for which the host does not wait."""
        ends = np.cumsum([-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays])
        packed = np.empty(ends[-1], np.uint8)
        parts = np.split(packed, ends[:-1])
        for part, array in zip(parts, arrays, strict=True):
            part[: array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        sent = self.send(torch.from_numpy(packed)).split(np.diff(ends, prepend=0).tolist())
        return [
            there[: array.nbytes].view(_DTYPES[array.dtype.name]).view(array.shape)
            for there, array in zip(sent, arrays, strict=True)
        ]

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

    def forward(self, embeddings: Tensor, start: Whole, count: Whole, table: Int32, alike: int = 0) -> Tensor:
        """The hidden states of each row's last token, [rows, width].

        Row i computes `count[i]` tokens of `embeddings` [tokens, width], row after row, at positions
        `start[i]` and on, in the blocks `table[i]`. All tables begin with the same `alike` blocks, which are
        computed already."""
        ends, row = np.cumsum(count), np.repeat(np.arange(len(count)), count)
        position = np.arange(len(row)) + (start - ends + count)[row]
        slot = table[row, position // self.block] * np.int64(self.block) + position % self.block
        begins, lengths = np.append(0, ends).astype(np.int32), (start + count).astype(np.int32)
        last, *given = self.upload(
            ends - 1, position, slot, begins, lengths, table, np.array([alike], np.int32)
        )
        inputs = Inputs(embeddings, *given)
        split = False
        if self.shared is not None and self.shared.pays(alike, len(count)):
            split, self.shared.passes = True, self.shared.passes + 1
        self.passes += 1
        hidden = self.recorded.run(inputs, split) if self.recorded is not None else None
        return (self.compute(inputs, begins, lengths, split) if hidden is None else hidden)[last]

    def compute(self, inputs: Inputs, begins: Int32, lengths: Int32, split: bool) -> Tensor:
        """The hidden states of a pass, [tokens, width], with shared attention if it is `split`. `begins` and
        `lengths` are those of the inputs, on the host: only sizes are taken from them."""
        slots, tokens = inputs.slots[None], len(inputs.positions)
        metadata = self._metadata(
            attn_groups=self._groups,
            num_reqs=len(lengths),
            num_tokens=tokens,
            query_start_loc_gpu=inputs.begins,
            query_start_loc_cpu=torch.from_numpy(begins),
            max_query_len=int(np.diff(begins).max()),
            seq_lens=inputs.lengths,
            max_seq_len=int(lengths.max()),
            block_tables=[inputs.table],
            slot_mappings=slots,
            kv_cache_config=self._cache_config,
            seq_lens_cpu_upper_bound=torch.from_numpy(lengths),
        )
        if split:
            assert self.shared is not None
            made = self.shared.split(inputs, int(lengths.max()))
            for of_layers in metadata.values():
                of_layers.split = made
        by_layer = self._by_layer(slots, self._cache_config)
        with self._context(metadata, self._config, num_tokens=tokens, slot_mapping=by_layer):
            hidden: Tensor = self.model(
                input_ids=None,
                positions=inputs.positions,
                intermediate_tensors=None,
                inputs_embeds=inputs.embeddings,
            )
        return hidden

    def copy(self, blocks: npt.NDArray[np.int64]) -> None:
        """Copy blocks [n, 2], from and to, in every layer: whole blocks, since backends order their content
        differently."""
        if self.device.type == "cpu":
            for items in self._items:
                items[blocks[:, 1]] = items[blocks[:, 0]]
            return
        if self.recorded is not None:
            self.recorded.copy(blocks)
        else:
            self.copy_on_device(*self.upload(blocks[:, 0], blocks[:, 1]))

    def copy_on_device(self, source: Tensor, target: Tensor) -> None:
        """Copy the blocks `source` to `target`, int64 [n] each on the device, in every layer."""
        for cache, dim in self.caches:
            cache.index_copy_(dim, target, cache.index_select(dim, source))


def seam(engine: LLMEngine, rows: int) -> Seam:
    """The connection to a started engine, for passes of at most `rows` rows on a GPU. Raises Refused."""
    if engine.vllm_config.parallel_config.world_size > 1:
        raise Refused("the model is spread over several GPUs")
    try:
        (made,) = engine.collective_rpc(partial(Seam, rows=rows))
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


def _groups(groups: list[list[Any]], rows: int, tokens: int) -> list[list[Any]]:
    """vLLM's groups of layers with a metadata builder of ours, for passes of `rows` rows. FlashAttention 3's
    keeps a schedule in a buffer, which vLLM's own graphs read, too. Its layout depends on the number of parts
    in which a row's keys are read: hundreds of rows fill a GPU in one part."""
    (group,) = groups[0]
    builder = copy.copy(group.get_metadata_builder(0))
    if getattr(builder, "aot_schedule", False) and builder.use_full_cuda_graph:
        size = 1 + -(-rows // 4) * 16
        builder.scheduler_metadata = torch.zeros(size, dtype=torch.int32, device=builder.device)
        builder.max_cudagraph_size, builder.max_num_splits = tokens, 1
    return [[replace(group, metadata_builders=[builder])]]


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
