"""Attention in a row of a trunk and tails (packing.py), as an attention function of transformers.

A tail's tokens attend to the trunk up to the tail's cut, and to the tail before them. These are plain matrix
products, one for the queries of all tails with the trunk's keys: torch's kernel would need a mask, and take
four times as long on a CPU. Trunks and whole prompts are computed by the kernel, whose scores are float32:
by products in bfloat16, their gradients came out 40% too long. Calls without a pack go to torch unchanged.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gemel_ray.training.packing import Group, Pack

NAME = "trunk_and_tails"
_WINDOW = 4096  # positions; a shorter sliding window is refused, since prompts may exceed it
_HARMLESS = {"dropout", "position_ids", "cache_position", "use_cache", "output_attentions", "is_causal"}


class Unsupported(ValueError):
    """The model's attention has a feature that this function does not support."""


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    pack: Pack | None = None,
    trunk: Cache | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a pack, from [1, heads, positions, width] to [1, positions, heads, width]. `trunk`: the
    trunk's keys and values, if it is not in the pack."""
    if pack is None:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **more)
    _check(pack, more)
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    groups = [*([Group(0, 1, pack.trunk)] if pack.trunk else []), *pack.groups]
    sizes = [g.rows * g.longest for g in groups]
    queries, keys, values = (t[0].split(sizes, 1) for t in (query, key, value))
    trunk_states = keys[0], values[0]
    if trunk is not None:
        trunk_states = trunk.layers[module.layer_idx].keys[0], trunk.layers[module.layer_idx].values[0]
    out = []
    for group, q, k, v in zip(groups, queries, keys, values, strict=True):
        if group.cut:
            out.append(_by_products(group, q, k, v, *(t[:, : group.cut] for t in trunk_states)))
        else:
            out.append(_by_kernel(group, q, k, v))
    return torch.cat(out, 1).transpose(0, 1)[None], None


def used_by(model: Any) -> bool:
    return bool(model.config._attn_implementation == NAME)


def _check(pack: Pack, more: MutableMapping[str, Any]) -> None:
    window = more.pop("sliding_window", None)
    if window is not None and window < max(_WINDOW, int(pack.places.max()) + 1):
        positions = pack.places.max() + 1
        raise Unsupported(f"a sliding window of {window} over prompts of up to {positions} positions")
    if unknown := sorted(n for n, given in more.items() if given is not None and n not in _HARMLESS):
        raise Unsupported(f"attention with {', '.join(unknown)}")


def _by_kernel(group: Group, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    q, k, v = (t.unflatten(1, (group.rows, group.longest)).transpose(0, 1) for t in (query, key, value))
    out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0, enable_gqa=len(query) != len(key))
    return out.transpose(0, 1).flatten(1, 2)


def _by_products(
    group: Group,
    query: torch.Tensor,  # [heads, rows * longest, width], scaled
    key: torch.Tensor,
    value: torch.Tensor,
    trunk_key: torch.Tensor,  # [key heads, cut, width]
    trunk_value: torch.Tensor,
) -> torch.Tensor:
    """Attention as [heads, rows * longest, width]. Query heads that share a key head are rows of one
    product."""
    cut, rows, longest, kv_heads = group.cut, group.rows, group.longest, len(key)
    shared = len(query) // kv_heads  # query heads per key head
    q = query.view(kv_heads, shared, rows, longest, -1).transpose(1, 2)
    q = q.reshape(kv_heads, rows, shared * longest, -1)
    tail_key, tail_value = (t.unflatten(1, (rows, longest)) for t in (key, value))
    later = torch.ones(longest, longest, dtype=torch.bool, device=q.device).triu(1).repeat(shared, 1)
    scores = (q @ tail_key.mT).masked_fill(later, float("-inf"))
    trunk_scores = (q.flatten(1, 2) @ trunk_key.mT).view(*q.shape[:3], cut)
    weights = torch.cat([trunk_scores, scores], -1).softmax(-1)
    out = weights[..., cut:] @ tail_value
    out = out + (weights[..., :cut].flatten(1, 2) @ trunk_value).view(out.shape)
    out = out.view(kv_heads, rows, shared, longest, -1).transpose(1, 2)
    return out.reshape(len(query), rows * longest, -1)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
