"""What was measured on a GPU, what is on data sheets, and what is only computed: where rates.py begins."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Dense bfloat16 operations a second, memory in GiB, and dollars an hour on demand."""

    flops: float
    memory: float
    price: float


# Operations and memory: NVIDIA's data sheets, without sparsity. Prices: the order of large clouds' on-demand
# lists, a GPU of a machine with several; they move: --price says what is paid.
GPUS = {
    "l4": Gpu(121e12, 24, 0.8),
    "a10": Gpu(125e12, 24, 1.0),
    "a100": Gpu(312e12, 80, 4.0),
    "h100": Gpu(989e12, 80, 7.0),
}


@dataclass(frozen=True)
class Seen:
    """Generate alone, on assembled prompts: bench speed, 16 demonstrations in a shared set, 5 beams."""

    parameters: float
    mentions_per_second: float


CARD = "H100 80 GB, 2026-11-26"
MEASURED_ON = f"{CARD}, 16 cores, vLLM 0.32.0, the search by requests"
MEASURED = (Seen(135e6, 43.9), Seen(7e9, 38.0))
# What the search in lock step would do there, computed from operations and memory; it has not run on a GPU.
ON_PAPER = (Seen(135e6, 8800.0), Seen(7e9, 400.0))


@dataclass(frozen=True, kw_only=True)
class Model:
    """Of the language model and a mention. The defaults are what the H100 showed: its two rates give the
    host's time of a mention, and with 60 tokens each the share of the GPU's operations."""

    parameters: float = 7e9
    computed: float = 60.0  # tokens a mention that no cache has, decoded ones included
    host_ms: float = 22.7  # of a mention, whatever the model: the requests of its search
    efficiency: float = 0.235  # of a GPU's operations that are reached, by CLIP and engine alike
    images_per_cpu: float = 120.0  # pictures a second that a core decodes and resizes

    def seconds(self, flops: float) -> float:
        """A mention of an engine that has so many operations a second."""
        return self.host_ms / 1000 + 2 * self.parameters * self.computed / (flops * self.efficiency)


def on_paper(parameters: float) -> float:
    """Mentions a second of the search in lock step on an H100, in a line between what was computed."""
    small, large = ON_PAPER
    slope = (1 / large.mentions_per_second - 1 / small.mentions_per_second) / (
        large.parameters - small.parameters
    )
    return 1 / max(1e-9, 1 / small.mentions_per_second + slope * (parameters - small.parameters))
