"""Attention to the common beginning of all rows of a pass, computed once for all of them.

Each of hundreds of beams would read the keys of the same demonstrations. vLLM 0.32 has no longer an attention
for this, but its parts: all queries attend to the shared blocks as one sequence, then each row's queries to
the rest, and both results are merged by their log-sum-exp. It costs two more launches per layer, so it is
used only if there is enough to be read. Supports vLLM's FlashAttention only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from gemel_ray.engine.vllm.seam import Refused

if TYPE_CHECKING:
    from gemel_ray.engine.vllm.seam import Inputs, Seam

_ENOUGH = 2**30  # bytes of keys and values that a layer would read repeatedly in a pass
Kernel = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Split:
    """A pass whose rows begin with the same blocks, int32 on the device."""

    shared: Tensor  # [1, blocks]
    length: Tensor  # [1], in tokens
    ends: Tensor  # [2], the ends of all queries as one sequence
    rest: Tensor  # [rows, blocks], the other blocks of each row
    lengths: Tensor  # [rows], in tokens of the rest
    longest: int  # tokens of either part, at most


@dataclass(frozen=True, slots=True)
class Kernels:
    """FlashAttention over paged keys and values, and the merge of two results."""

    attend: Kernel
    merge: Kernel


class SharedPrefix:
    """Shared attention of an engine: used if a layer would read `least` bytes repeatedly; 0: in every pass
    whose rows have a whole block in common."""

    def __init__(self, seam: Seam, impls: Sequence[Any], kernels: Kernels, least: int) -> None:
        for impl in impls:
            _check(impl)
        self._seam, self.least, self.passes = seam, least, 0
        size = seam.caches[0][0].element_size()
        self._bytes = 2 * impls[0].num_kv_heads * impls[0].head_size * size  # of a token, in a layer
        for impl in impls:
            impl.forward = partial(_forward, impl, impl.forward, kernels)

    @contextmanager
    def wherever_it_can(self) -> Iterator[None]:
        """Use it in every possible pass: for a trial, whose prompts are short."""
        least, self.least = self.least, 0
        yield
        self.least = least

    def pays(self, blocks: int, rows: int) -> bool:
        """Whether it is worth it for a pass of `rows` rows that begin with the same `blocks`."""
        return blocks > 0 and rows * blocks * self._seam.block * self._bytes >= self.least

    def split(self, inputs: Inputs, longest: int) -> Split:
        """Split a pass; `longest` is the greatest length of its rows. Nothing else is read on the host, so
        that it can be part of a CUDA graph. Rows that nobody fills have no length."""
        table, alike = inputs.table, inputs.alike
        after = torch.arange(table.shape[1], device=table.device) + alike
        rest = table.gather(1, after.clamp_(max=table.shape[1] - 1).expand_as(table))
        length = alike * self._seam.block
        ends = torch.stack([inputs.begins[0], inputs.begins[-1]])
        return Split(table[:1], length, ends, rest, (inputs.lengths - length).clamp_(min=0), longest)


def shared_prefix(seam: Seam, wanted: Literal["auto", "always"]) -> SharedPrefix:
    """Install shared attention in a started engine. Raises Refused if it has another attention."""
    try:
        from vllm.v1.attention.backends.fa_utils import flash_attn_varlen_func
        from vllm.v1.attention.ops.merge_attn_states import merge_attn_states

        kernels = Kernels(flash_attn_varlen_func, merge_attn_states)
        return SharedPrefix(seam, seam.attention(), kernels, 0 if wanted == "always" else _ENOUGH)
    except (ImportError, AttributeError) as moved:
        raise Refused(f"vLLM's attention has changed: {moved}") from moved


def attend(impl: Any, kernels: Kernels, query: Tensor, cache: Tensor, metadata: Any, output: Tensor) -> None:
    """Write the result of FlashAttention to `output`; query and output are [tokens, heads, size]."""
    split: Split = metadata.split
    keys, values = cache.transpose(1, 2).split(impl.head_size, dim=-1)
    ask = partial(
        kernels.attend,
        q=query,
        k=keys,
        v=values,
        softmax_scale=impl.scale,
        softcap=impl.logits_soft_cap,
        fa_version=impl.vllm_flash_attn_version,
        max_seqlen_k=split.longest,
        return_softmax_lse=True,
        num_splits=1,  # hundreds of rows fill a GPU
    )
    of_shared = ask(
        cu_seqlens_q=split.ends, max_seqlen_q=len(query), seqused_k=split.length, block_table=split.shared,
        causal=False,
    )  # fmt: skip
    of_rest = ask(
        cu_seqlens_q=metadata.query_start_loc, max_seqlen_q=metadata.max_query_len, seqused_k=split.lengths,
        block_table=split.rest, causal=True,
    )  # fmt: skip
    kernels.merge(output, *of_shared, *of_rest)


def _forward(
    impl: Any, plain: Callable[..., Tensor], kernels: Kernels, layer: Any, query: Tensor, key: Tensor,
    value: Tensor, cache: Tensor, metadata: Any, output: Tensor, **others: Any,
) -> Tensor:  # fmt: skip
    """Replaces FlashAttentionImpl.forward. The keys and values of the pass are in the cache already."""
    if getattr(metadata, "split", None) is None:
        return plain(layer, query, key, value, cache, metadata, output=output, **others)
    count = metadata.num_actual_tokens
    attend(impl, kernels, query[:count], cache, metadata, output[:count])
    return output


def _check(impl: Any) -> None:
    if type(impl).__name__ != "FlashAttentionImpl":
        raise Refused(f"the engine's attention is {type(impl).__name__}, not FlashAttention")
    plain: dict[str, Any] = {"alibi_slopes": None, "sinks": None, "sliding_window": (-1, -1)}
    plain |= {"fa4_hd256": False, "dcp_world_size": 1}
    if other := [name for name, value in plain.items() if getattr(impl, name) != value]:
        raise Refused(f"the model's attention has {', '.join(other)}")
    if "fp8" in impl.kv_cache_dtype:
        raise Refused("the key-value cache has eight bits per number")
