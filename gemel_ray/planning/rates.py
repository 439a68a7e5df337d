"""What one node does in a second: measured by gemel-ray bench, or worked out from published figures."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CLIP = 162e9  # floating-point operations of ViT-L/14 for a picture (Radford et al., 2021: 81 G MACs)
_SHARE = 0.05  # of a GPU: CLIP's share is a multiple of it


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


@dataclass(frozen=True, kw_only=True)
class Model:
    """Of the language model and a mention: what there is to compute."""

    parameters: float = 7e9
    computed: float = 150.0  # prompt tokens a mention that no cache has
    decoded: float = 25.0  # tokens a mention, of all beams
    efficiency: float = 0.35  # of a GPU's operations that are reached, by CLIP and engine alike
    decoding: float = 0.25  # of that again, in decoding, which reads more than it computes
    images_per_cpu: float = 120.0  # pictures a second that a core decodes and resizes


@dataclass(frozen=True)
class Node:
    """One machine: pairs a second at each of its stations, when that alone runs; and how it is cut up."""

    stations: dict[str, float]
    price: float  # dollars an hour
    gpus: int
    cpus: int
    segments: tuple[dict[str, Any], ...]  # offline.segments, for one node; workers are its own
    assumptions: tuple[str, ...]
    measured: bool = False
    started: float = 180.0  # seconds until it links
    block: int = 64
    overlap: int = 4
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Pairs a second of the whole line: its slowest station's."""
        return min(self.stations.values())

    @property
    def bottleneck(self) -> str:
        return min(self.stations, key=lambda name: self.stations[name])


def published(
    gpu: str, model: Model, mentions: float, gpus: int, cpus: int, megabytes: float, gigabits: float
) -> Node:
    """A node of `gpus` GPUs of a kind and `cpus` cores, each GPU shared by one engine and one CLIP. Of a
    pair: `mentions`, `megabytes`; `gigabits` a second of the node's network. Raises ValueError for a GPU that
    is too small."""
    kind = GPUS[gpu]
    held = 2 * model.parameters / 2**30
    if held > 0.8 * kind.memory:
        raise ValueError(
            f"{model.parameters / 1e9:.1f} billion parameters take {held:.0f} GiB, and an {gpu} has "
            f"{kind.memory:.0f}: take a larger one (planning for generate.tensor_parallel is not done)"
        )
    reached = kind.flops * model.efficiency
    operations = 2 * model.parameters * (model.computed + model.decoded / model.decoding) * mentions
    engine, clip = reached / operations, reached / _CLIP
    # A share for CLIP that keeps up with the engine on the rest, rounded up.
    share = min(0.5, max(_SHARE, -(-(engine / (clip + engine)) // _SHARE) * _SHARE))
    stations = {
        "generate": gpus * (1 - share) * engine,
        "encode (GPU)": gpus * share * clip,
        "encode (decoding pictures)": cpus * 0.8 * model.images_per_cpu,
        "network": gigabits / 8 * 1000 / megabytes,
    }
    front = (cpus - 2 * gpus - 2) // gpus  # two for each engine, and two for reading
    if front < 1:
        raise ValueError(f"--cpus-per-node {cpus}: {gpus} GPUs need at least {3 * gpus + 2} CPUs")
    # What Ray is asked for is not what is used: Ray puts fractions of a GPU together on the first that holds
    # them, so all of a node's encoders must leave room for an engine there, and no two engines on one.
    segments = (
        {"stages": ["detect", "encode"], "workers": gpus, "cpus": float(front),
         "gpus": 4 * 100 // (cpus // front) / 1000, "batch": 128},
        {"stages": ["retrieve", "assemble", "generate"], "workers": gpus, "cpus": 2.0, "gpus": 0.6,
         "batch": 64},
    )  # fmt: skip
    return Node(stations, kind.price * gpus, gpus, cpus, segments, (
        f"{gpu}: {kind.flops / 1e12:.0f} TFLOP/s (published), of which {model.efficiency:.0%} are reached",
        f"language model of {model.parameters / 1e9:g} billion parameters; {model.computed:g} prompt tokens "
        f"a mention computed, {model.decoded:g} decoded at {model.decoding:.0%} of that speed",
        f"CLIP ViT-L/14, {share:.0%} of each GPU; {model.images_per_cpu:g} pictures a second decoded by each "
        f"of {cpus} cores, 80% of the time",
        f"{megabytes:g} MB a pair over {gigabits:g} Gbit/s; {mentions:g} mentions a pair",
        f"{kind.price * gpus:g} dollars a node and hour",
    ))  # fmt: skip


def measured(file: Path, mentions: float, price: float) -> Node:
    """A node as the machine was on which `gemel-ray bench speed --json` wrote `file`. Raises ValueError."""
    try:
        told = json.loads(file.read_text())
        job, rounds = told["job"], told["rounds"]
        of_graph = rounds["graph_mentions_per_second"]["median"]
        rate = job["mentions_per_second"] or of_graph
        bottleneck = told["ratios"]["bottleneck"]
        machine = told["machine"]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise ValueError(f"{file} is not what gemel-ray bench speed --json writes ({fault!r})") from fault
    gpus, cpus = len(machine["gpus"]), int(machine["cores"])
    segments = ({"stages": ["detect", "encode", "retrieve", "assemble", "generate"], "workers": max(1, gpus),
                 "cpus": 1.0, "gpus": 1.0 if gpus else 0.0},)  # fmt: skip
    return Node(
        {f"the line, held up by {bottleneck}": rate / mentions}, price, gpus, cpus, segments,
        (
            f"each node does {rate:.2f} mentions a second, as measured on {cpus} cores and {gpus} GPUs",
            f"{mentions:g} mentions a pair; {price:g} dollars a node and hour",
        ),
        measured=True, started=float(job["seconds_to_first_batch"]),
    )  # fmt: skip
