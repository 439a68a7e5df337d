"""vLLM's worker on a GPU, which measures the memory of its own engine only, and takes what is there.

For vLLM, all memory that a GPU has lost since the worker began is the engine's, and an engine that finds less
free than it asks for does not start. Here a GPU is shared: while an engine starts, another one takes memory,
and processes that encode pictures end and leave theirs, at which vLLM's worker fails."""

from __future__ import annotations

import logging

import torch
from vllm.config import set_current_vllm_config
from vllm.v1.worker.gpu_worker import Worker

_log = logging.getLogger(__name__)
# Bytes for what torch does not allocate, and for CUDA graphs, which are recorded later.
_BESIDE = 2**30


class OwnMemory(Worker):
    """vLLM makes it by its name, in `EngineArgs.worker_cls`."""

    def init_device(self) -> None:
        """Begin with the share of the GPU that was asked for, or with what others have left of it."""
        torch.cuda.empty_cache()
        self._of_others = torch.cuda.memory_reserved()  # in this process: other engines, encoders
        if self.parallel_config.world_size == 1:
            free, total = torch.cuda.mem_get_info()
            asked, there = self.cache_config.gpu_memory_utilization, (free - _BESIDE) / total
            if 0 < there < asked:
                self.cache_config.gpu_memory_utilization = there
                _log.warning(
                    "the engine takes %.1f GiB of its GPU, not the %.1f of generate.gpu_memory: other "
                    "processes have the rest",
                    there * total / 2**30,
                    asked * total / 2**30,
                )
        super().init_device()

    @torch.inference_mode()
    def determine_available_memory(self) -> int:
        """Bytes of the key-value cache: the engine's share of the GPU, less its weights and what the largest
        pass takes."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        with set_current_vllm_config(self.vllm_config):
            self.model_runner.profile_run()
        ours = torch.cuda.max_memory_reserved(self.device) - self._of_others
        return int(self.requested_memory - ours - _BESIDE)
