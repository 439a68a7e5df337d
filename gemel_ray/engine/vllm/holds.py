"""Holds: prompts pinned in the key-value cache, so that other requests continue exactly at their end.

vLLM frees a request's blocks when it ends, and finds a prompt again by whole blocks only. A beam that leaves
the path would compute the prompt's last, half-filled block again, on average 16 tokens: with five beams more
than the question itself. A *hold* keeps a finished prompt's blocks (pinned: no eviction), and a request that
continues it gets a copy of that last block. It uses vLLM's interface for KV connectors, on both sides in this
engine's process: nothing is transferred.

A request chooses by `SamplingParams.extra_args`:
    keep    int                     the hold that keeps its blocks when it ends; 0: none
    after   list[tuple[int, int]]   (hold, tokens): the first one that exists is the prefix that it continues
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.request import Request


@dataclass
class Copies(KVConnectorMetadata):
    """Blocks to be copied before a step: (from, to)."""

    blocks: list[tuple[int, int]] = field(default_factory=list)


class Holds(KVConnectorBase_V1):
    """The connector: one instance in the scheduler, which decides, and one in every worker, which copies."""

    def __init__(self, vllm_config: VllmConfig, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._block = int(vllm_config.cache_config.block_size)
        self._number = int(kv_cache_config.num_blocks)
        self._blocks_of: dict[int, list[KVCacheBlock]] = {}
        self._next = Copies()
        self._caches: list[torch.Tensor] = []

    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        self._pool = gpu_block_pool

    def open(self, hold: int) -> None:
        """Allow a request to be kept under `hold`."""
        self._blocks_of.setdefault(hold, [])

    def close(self, hold: int) -> None:
        """Release the blocks of `hold`; its beginning is the last to be evicted."""
        self._pool.free_blocks(reversed(self._blocks_of.pop(hold, [])))

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        """The tokens of the half-filled block. At least one token is left to be computed."""
        found = self._prefix(request)
        if found is None:
            return 0, False
        tail = found[1] % self._block
        if num_computed_tokens != found[1] - tail:
            return 0, False
        return min(tail, request.num_tokens - 1 - num_computed_tokens), False

    def update_state_after_alloc(self, request: Request, blocks: Any, num_external_tokens: int) -> None:
        found = self._prefix(request)
        if num_external_tokens and found is not None:
            last = found[1] // self._block
            self._next.blocks.append((found[0][last].block_id, blocks.get_block_ids()[0][last]))

    def _prefix(self, request: Request) -> tuple[list[KVCacheBlock], int] | None:
        """The blocks of the prefix that the request continues, and its number of tokens."""
        for hold, tokens in _extra(request, "after"):
            if blocks := self._blocks_of.get(hold):
                return blocks, tokens
        return None

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, None]:
        hold = _extra(request, "keep")
        if self._blocks_of.get(hold) == [] and request.num_computed_tokens >= request.num_prompt_tokens:
            self._blocks_of[hold] = [self._pool.blocks[i] for i in block_ids]
            self._pool.touch(self._blocks_of[hold])
        return False, None

    def build_connector_meta(self, scheduler_output: Any) -> Copies:
        made, self._next = self._next, Copies()
        return made

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._caches = list({cache.data_ptr(): cache for cache in kv_caches.values()}.values())

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        copies = self._get_connector_metadata()
        assert isinstance(copies, Copies)
        if not copies.blocks:
            return
        device = self._caches[0].device
        source, target = torch.tensor(copies.blocks, device=device).unbind(1)
        for cache in self._caches:
            dim = cache.shape.index(self._number)  # backends order a cache's dimensions differently
            cache.index_copy_(dim, target, cache.index_select(dim, source))

    def shutdown(self) -> None:
        """Release the caches: a process may start another engine on the same GPU."""
        self._caches.clear()

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: copies are complete before a step begins."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Do nothing: blocks stay where they are."""

    def wait_for_save(self) -> None:
        """Do nothing: nothing is saved."""


def _extra(request: Request, name: str) -> Any:
    params = request.sampling_params
    return params.extra_args[name] if params is not None and params.extra_args else None
