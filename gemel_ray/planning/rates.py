"""What one node does in a second: measured by gemel-ray bench, or worked out from published figures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CLIP = 162e9  # floating-point operations of ViT-L/14 for a picture (Radford et al., 2021: 81 G MACs)
_SHARE = 0.05  # of a GPU: CLIP's share is a multiple of it
_TOGETHER = 0.8  # of their speed that GPUs reach who compute one model together


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
    parallel: int = 1  # GPUs of an engine: generate.tensor_parallel

    @property
    def rate(self) -> float:
        """Pairs a second of the whole line: its slowest station's."""
        return min(self.stations.values())

    @property
    def bottleneck(self) -> str:
        return min(self.stations, key=lambda name: self.stations[name])


@dataclass(frozen=True)
class _Cut:
    """How a node's GPUs are cut up: worth how many of them engines and encoders are, each in its segment."""

    engines: float
    encoders: float
    segments: tuple[dict[str, Any], ...]
    told: str


def published(
    gpu: str, model: Model, mentions: float, gpus: int, cpus: int, megabytes: float, gigabits: float
) -> Node:
    """A node of `gpus` GPUs of a kind and `cpus` cores: each GPU shared by one engine and one CLIP, or, where
    the language model needs several, some of them CLIP's. Of a pair: `mentions`, `megabytes`; `gigabits` a
    second of the node's network. Raises ValueError for a node that is too small."""
    kind = GPUS[gpu]
    held = 2 * model.parameters / 2**30
    parallel = next((n for n in (1, 2, 4, 8) if n <= gpus and held <= 0.8 * n * kind.memory), None)
    if parallel is None:
        raise ValueError(
            f"{model.parameters / 1e9:.1f} billion parameters take {held:.0f} GiB, and an {gpu} has "
            f"{kind.memory:.0f}: take a larger one, or more of them in a node (--gpus-per-node)"
        )
    reached = kind.flops * model.efficiency
    operations = 2 * model.parameters * (model.computed + model.decoded / model.decoding) * mentions
    engine, clip = reached / operations, reached / _CLIP
    cut = _shared(gpus, cpus, engine, clip) if parallel == 1 else _apart(gpus, cpus, engine, clip, parallel)
    stations = {
        "generate": cut.engines * engine,
        "encode (GPU)": cut.encoders * clip,
        "encode (decoding pictures)": cpus * 0.8 * model.images_per_cpu,
        "network": gigabits / 8 * 1000 / megabytes,
    }
    return Node(stations, kind.price * gpus, gpus, cpus, cut.segments, (
        f"{gpu}: {kind.flops / 1e12:.0f} TFLOP/s (published), of which {model.efficiency:.0%} are reached",
        f"language model of {model.parameters / 1e9:g} billion parameters; {model.computed:g} prompt tokens "
        f"a mention computed, {model.decoded:g} decoded at {model.decoding:.0%} of that speed",
        f"CLIP ViT-L/14, {cut.told}; {model.images_per_cpu:g} pictures a second decoded by each "
        f"of {cpus} cores, 80% of the time",
        f"{megabytes:g} MB a pair over {gigabits:g} Gbit/s; {mentions:g} mentions a pair",
        f"{kind.price * gpus:g} dollars a node and hour",
    ), parallel=parallel)  # fmt: skip


def _shared(gpus: int, cpus: int, engine: float, clip: float) -> _Cut:
    """A share of each GPU for CLIP that keeps up with the engine on the rest, rounded up."""
    share = min(0.5, max(_SHARE, -(-(engine / (clip + engine)) // _SHARE) * _SHARE))
    front = _front(cpus, gpus, gpus)
    # What Ray is asked for is not what is used: Ray puts fractions of a GPU together on the first that holds
    # them, so all of a node's encoders must leave room for an engine there, and no two engines on one.
    segments = _segments(gpus, front, 4 * 100 // (cpus // front) / 1000, gpus, 0.6)
    return _Cut(gpus * (1 - share), gpus * share, segments, f"{share:.0%} of each GPU")


def _apart(gpus: int, cpus: int, engine: float, clip: float, parallel: int) -> _Cut:
    """Engines of `parallel` GPUs each, and whole GPUs for CLIP: the fewest that make the slower fastest."""
    cuts = [((gpus - own) // parallel, own) for own in range(1, gpus - parallel + 1)]
    if not cuts:
        raise ValueError(
            f"an engine of {parallel} GPUs leaves none for CLIP in a node of {gpus}: see --gpus-per-node"
        )
    worth = parallel * _TOGETHER
    engines, own = max(cuts, key=lambda cut: (min(cut[0] * worth * engine, cut[1] * clip), -cut[1]))
    segments = _segments(own, _front(cpus, own, engines), 1.0, engines, float(parallel))
    told = f"{own} of {gpus} GPUs; engines of {parallel}, which together are worth {worth:g}"
    return _Cut(engines * worth, own, segments, told)


def _front(cpus: int, encoders: int, engines: int) -> int:
    """CPUs of an encoder: two for each engine, and two for reading, are not theirs."""
    front = (cpus - 2 * engines - 2) // encoders
    if front < 1:
        raise ValueError(
            f"--cpus-per-node {cpus}: {encoders} encoders and {engines} engines need at least "
            f"{encoders + 2 * engines + 2} CPUs"
        )
    return front


def _segments(
    encoders: int, front: int, each: float, engines: int, whole: float
) -> tuple[dict[str, Any], ...]:
    """Of one node: `encoders` with `front` CPUs and `each` of a GPU, `engines` with `whole` GPUs."""
    encoding = {"workers": encoders, "cpus": float(front), "gpus": each, "batch": 128}
    linking = {"workers": engines, "cpus": 2.0, "gpus": whole, "batch": 64}
    return (
        {"stages": ["detect", "encode"], **encoding},
        {"stages": ["retrieve", "assemble", "generate"], **linking},
    )


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
