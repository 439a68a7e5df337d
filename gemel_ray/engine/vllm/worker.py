"""vLLM's worker on a GPU, which measures the memory of its own process only.

For vLLM, all memory that a GPU has lost since the worker began is the engine's. Here a GPU is shared: while
an engine starts, another one takes memory, and processes that encode pictures end and leave theirs, at which
vLLM's worker fails."""

from __future__ import annotations

import torch
from vllm.config import set_current_vllm_config
from vllm.v1.worker.gpu_worker import Worker

# Bytes for what torch does not allocate, and for CUDA graphs, which are recorded later.
_BESIDE = 2**30


class OwnMemory(Worker):
    """vLLM makes it by its name, in `EngineArgs.worker_cls`."""

    @torch.inference_mode()
    def determine_available_memory(self) -> int:
        """Bytes of the key-value cache: the share of the GPU that was asked for, less the weights and what
        the largest pass takes."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        with set_current_vllm_config(self.vllm_config):
            self.model_runner.profile_run()
        return int(self.requested_memory - torch.cuda.max_memory_reserved(self.device) - _BESIDE)
