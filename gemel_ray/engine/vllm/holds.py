"""Prompts held in the key-value cache, and what stands behind them beginning exactly where they end.

vLLM frees a request's blocks when it ends, and finds a prompt again by whole blocks only. A beam that leaves
the path would compute the prompt's last, half-filled block again, 16 tokens of it on average: with five beams
more than the question itself. A *hold* keeps a finished prompt's blocks (pinned: no eviction), and a
request behind it gets a copy of that last block. Made of vLLM's own interface for KV connectors, on either
side of it in this engine's process: nothing is transferred.

A request says by `SamplingParams.extra_args`:
    keep    int                     the hold that its blocks are kept under when it ends; 0: none
    behind  list[tuple[int, int]]   (hold, tokens): the first of them that is there is what it stands behind
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
    """One instance decides, in the scheduler; one in every worker copies."""

    def __init__(self, vllm_config: VllmConfig, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._block = int(vllm_config.cache_config.block_size)
        self._number = int(kv_cache_config.num_blocks)
        self._held: dict[int, list[KVCacheBlock]] = {}
        self._next = Copies()
        self._caches: list[torch.Tensor] = []

    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        self._pool = gpu_block_pool

    def open(self, hold: int) -> None:
        """From now on a request may be kept under `hold`."""
        self._held.setdefault(hold, [])

    def close(self, hold: int) -> None:
        """Let go of what `hold` keeps; its beginning is the last to be evicted."""
        self._pool.free_blocks(reversed(self._held.pop(hold, [])))

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int, bool]:
        """Tokens of the half-filled block. One token is always left to compute."""
        found = self._found(request)
        if found is None:
            return 0, False
        tail = found[1] % self._block
        if num_computed_tokens != found[1] - tail:
            return 0, False
        return min(tail, request.num_tokens - 1 - num_computed_tokens), False

    def update_state_after_alloc(self, request: Request, blocks: Any, num_external_tokens: int) -> None:
        found = self._found(request)
        if num_external_tokens and found is not None:
            last = found[1] // self._block
            self._next.blocks.append((found[0][last].block_id, blocks.get_block_ids()[0][last]))

    def _found(self, request: Request) -> tuple[list[KVCacheBlock], int] | None:
        """What the request stands behind, and how many tokens of it."""
        for hold, tokens in _said(request, "behind"):
            if blocks := self._held.get(hold):
                return blocks, tokens
        return None

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, None]:
        hold = _said(request, "keep")
        if self._held.get(hold) == [] and request.num_computed_tokens >= request.num_prompt_tokens:
            self._held[hold] = [self._pool.blocks[i] for i in block_ids]
            self._pool.touch(self._held[hold])
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
        """Let go of the caches: a process may start another engine on the same GPU."""
        self._caches.clear()

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Copies are whole before a step begins."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Blocks are kept where they are."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""


def _said(request: Request, name: str) -> Any:
    params = request.sampling_params
    return params.extra_args[name] if params is not None and params.extra_args else None
