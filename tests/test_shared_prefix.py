"""Attention to what all rows begin with, computed once: what it says against plain attention.

FlashAttention is written out here for the CPU; on a GPU it is the real one. That a pass is told rightly what
its rows begin with, test_lockstep_toy.py holds."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gemel_ray.engine.vllm import opening
from gemel_ray.engine.vllm.seam import Inputs, Refused
from gemel_ray.engine.vllm.shared_prefix import Kernels, SharedPrefix, attend, shared_prefix

BLOCK, HEADS, GROUPS, SIZE = 16, 4, 2, 64
ALIKE, OTHERS = 2, 3  # blocks of a row
COUNTS = (1, 5, 1, 3)  # tokens that each row computes
LENGTHS = (ALIKE * BLOCK + 1, 79, 50, 40)  # of each row, those included


class FlashAttentionImpl:
    """vLLM's by name, and by what is asked of it."""

    def __init__(self, **others: Any) -> None:
        self.num_kv_heads, self.head_size, self.scale, self.logits_soft_cap = GROUPS, SIZE, SIZE**-0.5, 0
        self.alibi_slopes = self.sinks = None
        self.sliding_window, self.fa4_hd256, self.dcp_world_size = (-1, -1), False, 1
        self.kv_cache_dtype, self.vllm_flash_attn_version = "auto", 2
        self.plain = 0
        self.__dict__ |= others

    def forward(self, *given: Any, output: torch.Tensor, **named: Any) -> torch.Tensor:
        self.plain += 1
        return output


def written_out(
    *, q: Any, k: Any, v: Any, cu_seqlens_q: Any, seqused_k: Any, block_table: Any, causal: bool,
    softmax_scale: float, max_seqlen_q: int, max_seqlen_k: int, **others: Any,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """flash_attn_varlen_func over paged keys and values: answers [tokens, heads, size], and log-sum-exp
    [heads, tokens]."""
    answers, sums = torch.empty_like(q), torch.empty(q.shape[1], len(q))
    ends = cu_seqlens_q.tolist()
    assert max(seqused_k.tolist()) <= max_seqlen_k and max(np.diff(ends)) <= max_seqlen_q
    for row, length in enumerate(seqused_k.tolist()):
        here = slice(ends[row], ends[row + 1])
        keys, values = (
            t[block_table[row].long()].flatten(0, 1)[:length].repeat_interleave(HEADS // GROUPS, 1)
            for t in (k, v)
        )
        scores = torch.einsum("qhd,khd->hqk", q[here], keys) * softmax_scale
        if causal:
            seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril(length - scores.shape[1])
            scores = scores.masked_fill(~seen, -torch.inf)
        sums[:, here] = scores.logsumexp(-1)
        answers[here] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
    return answers, sums


def seam(device: str, dtype: torch.dtype) -> Any:
    """What SharedPrefix asks of one, and a cache of random keys and values."""
    cache = torch.randn(40, GROUPS, BLOCK, 2 * SIZE, generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(block=BLOCK, caches=[(cache.to(device, dtype), 0)])


def a_pass(device: str, dtype: torch.dtype) -> tuple[torch.Tensor, Any]:
    """Queries, and vLLM's metadata of rows that begin with the same blocks."""
    dice = torch.Generator().manual_seed(1)
    query = torch.randn(sum(COUNTS), HEADS, SIZE, generator=dice).to(device, dtype)
    numbers = torch.randperm(40, generator=dice).int()
    own = numbers[ALIKE : ALIKE + len(COUNTS) * OTHERS].view(len(COUNTS), OTHERS)
    table = torch.cat([numbers[:ALIKE].expand(len(COUNTS), -1), own], 1)
    begins = torch.tensor([0, *np.cumsum(COUNTS)], dtype=torch.int32)
    return query, SimpleNamespace(
        num_actual_tokens=len(query), query_start_loc=begins.to(device), max_query_len=max(COUNTS),
        seq_lens=torch.tensor(LENGTHS, dtype=torch.int32, device=device), max_seq_len=max(LENGTHS),
        block_table=table.to(device),
    )  # fmt: skip


def split_of(shared: SharedPrefix, metadata: Any) -> Any:
    nothing = torch.empty(0)
    alike = torch.tensor([ALIKE], dtype=torch.int32, device=metadata.block_table.device)
    rows = metadata.query_start_loc, metadata.seq_lens, metadata.block_table
    return shared.split(Inputs(nothing, nothing, nothing, *rows, alike), max(LENGTHS))


def both_ways(kernels: Kernels, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    there, impl, (query, metadata) = seam(device, dtype), FlashAttentionImpl(), a_pass(device, dtype)
    cache = there.caches[0][0]
    shared = SharedPrefix(there, [impl], kernels, 0)
    table, lengths = metadata.block_table, metadata.seq_lens
    metadata.split = split_of(shared, metadata)
    ours = torch.full_like(query, torch.nan)
    attend(impl, kernels, query, cache, metadata, ours)
    keys, values = cache.transpose(1, 2).split(SIZE, dim=-1)
    plain = kernels.attend(
        q=query, k=keys, v=values, cu_seqlens_q=metadata.query_start_loc, max_seqlen_q=max(COUNTS),
        seqused_k=lengths, max_seqlen_k=max(LENGTHS), block_table=table, causal=True,
        softmax_scale=impl.scale, fa_version=impl.vllm_flash_attn_version,
    )  # fmt: skip
    return ours, plain if isinstance(plain, torch.Tensor) else plain[0]


def test_split_in_two_it_is_the_same_attention() -> None:
    from vllm.v1.attention.ops.merge_attn_states import merge_attn_states

    ours, plain = both_ways(Kernels(written_out, merge_attn_states), "cpu", torch.float32)
    assert torch.allclose(ours, plain, atol=1e-5)


@pytest.mark.gpu
def test_flash_attention_split_in_two_is_the_same() -> None:
    from vllm.v1.attention.backends.fa_utils import flash_attn_varlen_func
    from vllm.v1.attention.ops.merge_attn_states import merge_attn_states

    kernels = Kernels(flash_attn_varlen_func, merge_attn_states)
    ours, plain = both_ways(kernels, "cuda", torch.bfloat16)
    assert torch.allclose(ours.float(), plain.float(), atol=0.02)


def test_a_pass_is_split_only_where_that_saves_much_reading() -> None:
    there, read = seam("cpu", torch.bfloat16), len(COUNTS) * ALIKE * BLOCK * 2 * GROUPS * SIZE * 2

    def pays(least: int, alike: int = ALIKE) -> bool:
        shared = SharedPrefix(there, [FlashAttentionImpl()], Kernels(written_out, written_out), least)
        return shared.pays(alike, len(COUNTS))

    assert pays(read)
    assert not pays(read + 1)
    assert not pays(0, alike=0)
    shared = SharedPrefix(there, [FlashAttentionImpl()], Kernels(written_out, written_out), read + 1)
    with shared.wherever_it_can():
        assert shared.least == 0
    assert shared.least == read + 1


def test_a_pass_that_is_not_split_goes_vllm_s_own_way() -> None:
    impl, (query, metadata) = FlashAttentionImpl(), a_pass("cpu", torch.float32)
    there, output = seam("cpu", torch.float32), torch.zeros_like(query)
    shared = SharedPrefix(there, [impl], Kernels(written_out, lambda output, *others: output.fill_(7)), 0)
    for split in (None, split_of(shared, metadata)):
        metadata.split = split
        impl.forward(
            None, query, query, query, there.caches[0][0], metadata, output=output, output_scale=None
        )
    assert (impl.plain, output.unique().tolist()) == (1, [7.0])


@pytest.mark.parametrize(
    "other",
    [{"alibi_slopes": [1.0]}, {"sinks": 1}, {"sliding_window": (31, 0)}, {"dcp_world_size": 2},
     {"kv_cache_dtype": "fp8"}],
)  # fmt: skip
def test_another_kind_of_attention_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        SharedPrefix(seam("cpu", torch.float32), [FlashAttentionImpl(**other)], Kernels(print, print), 0)


def test_an_engine_of_another_attention_is_refused() -> None:
    there = seam("cpu", torch.float32)
    there.attention = lambda: [SimpleNamespace()]
    with pytest.raises(Refused):  # the CPU's vLLM has no FlashAttention either
        shared_prefix(there, "always")


@pytest.mark.parametrize(
    ("wanted", "passes"), [("auto", [True, False]), ("auto", [True]), ("never", [False])]
)
def test_split_attention_is_tried_and_given_up_where_its_numbers_differ(
    wanted: str, passes: list[bool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rounds are tried with it first; where its numbers differ, without."""
    met: Any = SimpleNamespace(device=torch.device("cuda"), block=BLOCK, shared=None, recordable=False)
    there, tried = seam("cpu", torch.float32), list[bool]()

    def made(*given: Any) -> SharedPrefix:
        return SharedPrefix(there, [FlashAttentionImpl()], Kernels(written_out, written_out), 5)

    def prove(rounds: Any) -> None:
        tried.append(met.shared is not None)
        if met.shared is not None:
            assert met.shared.least == 0
            if len(passes) > 1:
                raise Refused("numbers differ")

    monkeypatch.setattr(opening, "shared_prefix", made)
    options: Any = SimpleNamespace(shared_attention=wanted, columns=2, beams=2)
    with caplog.at_level(logging.INFO):
        assert opening._tried(met, [1, 2, 3], options, prove)
    assert tried == passes
    assert (met.shared is not None) == passes[-1]
    assert met.shared is None or met.shared.least == 5
    assert ("numbers differ" in caplog.text) == (len(passes) > 1)
