"""Attention to what all rows of a pass begin with, computed once for all of them.

Each of hundreds of beams reads the keys of the same demonstrations. vLLM 0.32 has no attention for that any
more, but what it is made of: all queries attend to the shared blocks as one sequence, then each row's to what
stands behind them, and the two are merged by their log-sum-exp. It costs two launches more a layer, so it is
used where there is enough to be read. For vLLM's FlashAttention, and for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from gemel_ray.engine.vllm.seam import Refused

if TYPE_CHECKING:
    from gemel_ray.engine.vllm.seam import Seam

_ENOUGH = 2**30  # bytes of keys and values that a layer would read again and again in a pass
Kernel = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Split:
    """A pass whose rows begin with the same blocks, int32 on the device."""

    shared: Tensor  # [1, blocks]
    length: Tensor  # [1], in tokens
    ends: Tensor  # [2], of all queries as one sequence
    behind: Tensor  # [rows, blocks], each row's others
    lengths: Tensor  # [rows], of those
    tokens: int  # of what is shared
    longest: int  # of `lengths`


@dataclass(frozen=True, slots=True)
class Kernels:
    """FlashAttention over paged keys and values, and what merges two answers."""

    attend: Kernel
    merge: Kernel


class SharedPrefix:
    """Of an engine: used where a layer would read `least` bytes again and again. 0: in every pass whose rows
    have a whole block in common."""

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
        """For a trial, whose prompts are short."""
        least, self.least = self.least, 0
        yield
        self.least = least

    def split(self, blocks: int, queries: int, table: Tensor, lengths: Tensor, longest: int) -> Split | None:
        """Of a pass of so many `queries`, over rows of these tables that begin with the same `blocks`; None
        where it does not pay. `lengths` are whole, `longest` of them at most."""
        tokens = blocks * self._seam.block
        if not blocks or len(lengths) * tokens * self._bytes < self.least:
            return None
        self.passes += 1
        length, ends = self._seam.upload(np.array([tokens], np.int32), np.array([0, queries], np.int32))
        behind = table[:, blocks:].contiguous()
        return Split(table[:1, :blocks], length, ends, behind, lengths - tokens, tokens, longest - tokens)


def shared_prefix(seam: Seam, wanted: Literal["auto", "always"]) -> SharedPrefix:
    """Of a started engine. Raises Refused where its attention is another."""
    try:
        from vllm.v1.attention.backends.fa_utils import flash_attn_varlen_func
        from vllm.v1.attention.ops.merge_attn_states import merge_attn_states

        kernels = Kernels(flash_attn_varlen_func, merge_attn_states)
        return SharedPrefix(seam, seam.attention(), kernels, 0 if wanted == "always" else _ENOUGH)
    except (ImportError, AttributeError) as moved:
        raise Refused(f"vLLM's attention is not as it was: {moved}") from moved


def attend(impl: Any, kernels: Kernels, query: Tensor, cache: Tensor, metadata: Any, output: Tensor) -> None:
    """Write to `output` what FlashAttention would. Of all, [tokens, heads, size]."""
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
        return_softmax_lse=True,
    )
    before = ask(
        cu_seqlens_q=split.ends, max_seqlen_q=len(query), seqused_k=split.length, max_seqlen_k=split.tokens,
        block_table=split.shared, causal=False,
    )  # fmt: skip
    behind = ask(
        cu_seqlens_q=metadata.query_start_loc, max_seqlen_q=metadata.max_query_len, seqused_k=split.lengths,
        max_seqlen_k=split.longest, block_table=split.behind, causal=True,
    )  # fmt: skip
    kernels.merge(output, *before, *behind)


def _forward(
    impl: Any, plain: Callable[..., Tensor], kernels: Kernels, layer: Any, query: Tensor, key: Tensor,
    value: Tensor, cache: Tensor, metadata: Any, output: Tensor, **others: Any,
) -> Tensor:  # fmt: skip
    """In the place of FlashAttentionImpl.forward. The pass' keys and values are in the cache already."""
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
        raise Refused("the key-value cache is of eight bits")
