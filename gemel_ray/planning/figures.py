"""The figures that rates.py is based on: measured on a GPU, from data sheets, or only computed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Dense bfloat16 operations a second, memory in GiB, and dollars an hour on demand."""

    flops: float
    memory: float
    price: float


# Operations and memory: NVIDIA's data sheets, without sparsity. Prices: about those of large clouds on
# demand, for one GPU of a machine with several. They change: --price sets what is paid.
GPUS = {
    "l4": Gpu(121e12, 24, 0.8),
    "a10": Gpu(125e12, 24, 1.0),
    "a100": Gpu(312e12, 80, 4.0),
    "h100": Gpu(989e12, 80, 7.0),
}


@dataclass(frozen=True)
class Measurement:
    """Generate alone, on assembled prompts: 16 demonstrations in a shared set, 5 beams, no ranker."""

    parameters: float
    mentions_per_second: float
    engines: int = 1  # on the GPU


CARD = "H100 80 GB, 2026-11-28"
MEASURED_ON = f"{CARD}, 16 cores, vLLM 0.32.0, the search in rounds"
MEASURED = (Measurement(135e6, 1850.0), Measurement(135e6, 3200.0, engines=2), Measurement(7e9, 470.0))


@dataclass(frozen=True, kw_only=True)
class Model:
    """The cost of a mention with a language model. The defaults are from the H100: the two rates of one
    engine give the host's time per mention, and with 35 tokens each the share of the GPU's operations."""

    parameters: float = 7e9
    computed: float = 35.0  # tokens a mention that are in no cache, including decoded ones
    host_ms: float = 0.51  # per mention, for any model: the engine's process
    efficiency: float = 0.306  # share of a GPU's operations that CLIP and the engine reach
    images_per_cpu: float = 120.0  # pictures a second that a core decodes and resizes
    core_ms: float = 5.5  # per mention, from its detection to its prompt, with a ranker: measured on a CPU

    def seconds(self, flops: float, engines: int = 1) -> float:
        """Seconds per mention of engines that share `flops` operations a second."""
        return self.host_ms / 1000 / engines + 2 * self.parameters * self.computed / (flops * self.efficiency)
