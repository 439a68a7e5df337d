"""The rates of one node: measured by gemel-ray bench, or scaled from figures.py."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gemel_ray.checked import Values, made
from gemel_ray.config import STAGES, Config
from gemel_ray.errors import Mistake
from gemel_ray.planning.figures import CARD, GPUS, MEASURED, MEASURED_ON, Gpu, Model
from gemel_ray.sizing import (
    FRONTS,
    LARGE_ENCODER_GIB,
    Machine,
    encoders_beside_an_engine,
    engine_share,
    engines_per_gpu,
    fit,
)
from gemel_ray.sizing import Gpu as Card
from gemel_ray.stages.generate import Generate

if TYPE_CHECKING:
    from gemel_ray.measuring.speed import Speed

_CUT = STAGES.index("generate")  # where the line is cut in two: only the engine is in its process
_CLIP = 162e9  # floating-point operations of ViT-L/14 for a picture (Radford et al., 2021: 81 G MACs)
_SHARE = 0.05  # CLIP's share of a GPU is a multiple of this
_TOGETHER = 0.8  # share of their speed that GPUs reach when they compute one model together


@dataclass(frozen=True)
class Node:
    """One machine: pairs a second at each of its stations, if only that one ran; and its segments."""

    stations: dict[str, float]
    price: float  # dollars an hour
    gpus: int
    cpus: int
    segments: tuple[Values, ...]  # offline.segments for one node, with its number of workers
    assumptions: tuple[str, ...]
    measured: bool = False
    started: float = 180.0  # seconds until it links
    block: int = 64
    overlap: int = 4
    generate: Values = field(default_factory=dict)  # settings of the engine on these GPUs
    origins: dict[str, str] = field(default_factory=dict)  # where the stations' rates come from

    @property
    def rate(self) -> float:
        """Pairs a second of the whole line: those of its slowest station."""
        return min(self.stations.values())

    @property
    def bottleneck(self) -> str:
        return min(self.stations, key=lambda name: self.stations[name])


@dataclass(frozen=True)
class _Cut:
    """How a node's GPUs are divided: pairs a second of its engines and encoders, each in its segment."""

    engines: float
    encoders: float
    segments: tuple[Values, ...]
    description: str


def scaled(
    gpu: str, model: Model, mentions: float, gpus: int, cpus: int, megabytes: float, gigabits: float
) -> Node:
    """A node of `gpus` GPUs of a kind and `cpus` cores. Each GPU is shared by engines and CLIP, or, where the
    language model needs several GPUs, some are CLIP's alone. `mentions` and `megabytes` of a pair; `gigabits`
    a second of the node's network. Raises ValueError for a node that is too small."""
    kind = GPUS[gpu]
    weights = _weights(model)
    parallel = next((n for n in (1, 2, 4, 8) if n <= gpus and weights <= 0.8 * n * kind.memory), None)
    if parallel is None:
        raise Mistake(
            f"{model.parameters / 1e9:.1f} billion parameters take {weights:.0f} GiB, and an {gpu} has "
            f"{kind.memory:.0f}: take a larger one, or more of them in a node (--gpus-per-node)"
        )
    cut = (_shared if parallel == 1 else _separate)(gpus, cpus, _Speeds(kind, model, mentions), parallel)
    stations = {
        "generate": cut.engines,
        "encode (GPU)": cut.encoders,
        "encode (decoding pictures)": cpus * 0.8 * model.images_per_cpu,
        "retrieve (cores)": cpus * 0.8 * 1000 / (model.core_ms * mentions),
        "network": gigabits / 8 * 1000 / megabytes,
    }
    return Node(stations, kind.price * gpus, gpus, cpus, cut.segments, (
        _engine(gpu, model),
        f"{gpu}: {kind.flops / 1e12:.0f} TFLOP/s (data sheet), of which {model.efficiency:.1%} are reached",
        f"language model of {model.parameters / 1e9:g} billion parameters; {model.computed:g} tokens "
        f"a mention computed, {model.host_ms:g} ms of the host",
        f"CLIP ViT-L/14 in bfloat16 (build the workspace with encode.dtype=bfloat16), {cut.description}",
        f"{model.images_per_cpu:g} pictures a second decoded by each of "
        f"{cpus} cores, 80% of the time",
        f"{model.core_ms:g} ms of a core for a mention before the engine, with a ranker",
        f"{megabytes:g} MB a pair over {gigabits:g} Gbit/s; {mentions:g} mentions a pair",
        f"{kind.price * gpus:g} dollars a node and hour",
    ), generate=_settings(cut.segments, Machine(cpus, (Card(gpu, kind.memory),) * gpus), weights, parallel),
       origins=_origins(gpu, model))  # fmt: skip


@dataclass(frozen=True)
class _Speeds:
    kind: Gpu
    model: Model
    mentions: float

    def engine(self, gpus: float, together: int = 1) -> float:
        """Pairs a second of one engine, or several `together`, on `gpus` GPUs."""
        return 1 / (self.mentions * self.model.seconds(gpus * self.kind.flops, together))

    def clip(self, gpus: float) -> float:
        return gpus * self.kind.flops * self.model.efficiency / _CLIP


def _settings(segments: tuple[Values, ...], machine: Machine, weights: float, parallel: int) -> Values:
    """Generate's settings that fit these segments where Ray fills one GPU before the next, as on a cluster.
    There nothing is chosen: the configuration must have them."""
    values = {
        "offline": {"address": "auto", "segments": list(segments)},
        "generate": {"tensor_parallel": parallel},
    }
    chosen: Config = made(Config, values, "")
    now = fit(chosen, "offline", machine, weights).config.generate
    return {n: value for n, value in asdict(now).items() if value != getattr(Generate(), n)}


def _was_measured(gpu: str, model: Model) -> bool:
    sizes = [measurement.parameters for measurement in MEASURED]
    return gpu == "h100" and model == Model(parameters=model.parameters) and model.parameters in sizes


def _origins(gpu: str, model: Model) -> dict[str, str]:
    """Where each station's rate comes from."""
    return {
        "generate": f"{'measured on' if _was_measured(gpu, model) else 'scaled from'} an {CARD}",
        "encode (GPU)": "scaled from the data sheet",
        "encode (decoding pictures)": "assumed",
        "retrieve (cores)": "measured on two cores of another machine",
        "network": "given",
    }


def _engine(gpu: str, model: Model) -> str:
    rates = ", ".join(
        f"{m.mentions_per_second:g} mentions/s with {m.parameters / 1e9:g} billion parameters"
        + (f" and {m.engines} engines" if m.engines > 1 else "")
        for m in MEASURED
    )
    scaled = "" if _was_measured(gpu, model) else "; scaled by operations"
    return f"engine as on one {MEASURED_ON}: {rates}{scaled}"


def _shared(gpus: int, cpus: int, speeds: _Speeds, _: int) -> _Cut:
    """A share of each GPU for CLIP: the smallest that keeps up with the engines on the rest."""
    weights, steps = _weights(speeds.model), [_SHARE * n for n in range(1, round(0.5 / _SHARE) + 1)]
    together = engines_per_gpu(cpus / gpus, speeds.kind.memory, weights)
    engines, engine = gpus * together, engine_share(together)
    share = next((s for s in steps if speeds.clip(s) >= speeds.engine(1 - s, together)), steps[-1])
    fronts = gpus * max(1, min(FRONTS * together, (cpus - 2 * engines - 2) // (2 * gpus)))
    room = encoders_beside_an_engine(speeds.kind.memory, together * weights, LARGE_ENCODER_GIB)
    fronts = max(1, min(fronts, room))
    front = _front(cpus, fronts, engines)
    # The shares that Ray gets are not those that are used. On a cluster Ray puts fractions of a GPU on the
    # first that has room, so all of a node's encoders must leave room for the engines there.
    each = int(1000 * (1 - together * engine) / (cpus // front)) / 1000
    return _Cut(
        gpus * speeds.engine(1 - share, together),
        gpus * speeds.clip(share),
        _segments(fronts, front, each, engines, engine),
        f"{share:.0%} of each GPU",
    )


def _weights(model: Model) -> float:
    return 2 * model.parameters / 2**30  # GiB


def _separate(gpus: int, cpus: int, speeds: _Speeds, parallel: int) -> _Cut:
    """Engines of `parallel` GPUs each, and whole GPUs for CLIP: the fewest that make the slower fastest."""
    cuts = [((gpus - clips) // parallel, clips) for clips in range(1, gpus - parallel + 1)]
    if not cuts:
        raise Mistake(
            f"an engine of {parallel} GPUs leaves none for CLIP in a node of {gpus}: give --gpus-per-node "
            f"{parallel + 1} or more"
        )
    engine, clip = speeds.engine(parallel * _TOGETHER), speeds.clip(1)
    engines, clips = max(cuts, key=lambda cut: (min(cut[0] * engine, cut[1] * clip), -cut[1]))
    segments = _segments(clips, _front(cpus, clips, engines), 1.0, engines, float(parallel))
    worth = parallel * _TOGETHER
    description = f"{clips} of {gpus} GPUs; engines of {parallel}, which together are worth {worth:g}"
    return _Cut(engines * engine, clips * clip, segments, description)


def _front(cpus: int, encoders: int, engines: int) -> int:
    """CPUs of each encoder, after two for each engine and two for reading."""
    front = (cpus - 2 * engines - 2) // encoders
    if front < 1:
        least = encoders + 2 * engines + 2
        raise Mistake(
            f"--cpus-per-node {cpus}: {encoders} encoders and {engines} engines need at least {least} CPUs: "
            f"give --cpus-per-node {least} or more, or fewer --gpus-per-node"
        )
    return front


def _segments(encoders: int, front: int, each: float, engines: int, whole: float) -> tuple[Values, ...]:
    """One node's segments: `encoders` with `front` CPUs and `each` of a GPU, `engines` with `whole` GPUs."""
    encoding = {"workers": encoders, "cpus": float(front), "gpus": each, "batch": 128}
    linking = {"workers": engines, "cpus": 2.0, "gpus": whole, "batch": 64}
    return (
        {"stages": list(STAGES[:_CUT]), **encoding},
        {"stages": list(STAGES[_CUT:]), **linking},
    )


def measured(file: Path, mentions: float, price: float) -> Node:
    """A node like the machine on which `gemel-ray bench speed --json` wrote `file`. Raises ValueError."""
    try:
        report: Speed = json.loads(file.read_text())
        job, machine, segments = report["job"], report["machine"], tuple(report["segments"])
        rate = job["mentions_per_second"] or report["rounds"]["mentions_per_second"]["median"]
        bottleneck = report["bottleneck"].partition(":")[0]  # the stage; the rest are its figures
        started = float(job["seconds_to_first_batch"])
        gpus, cpus = len(machine["gpus"]), int(machine["cores"])
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise Mistake(f"{file} is not what gemel-ray bench speed --json writes ({fault!r})") from fault
    return Node(
        {f"the whole graph, limited by {bottleneck}": rate / mentions}, price, gpus, cpus, segments,
        (
            f"each node does {rate:.2f} mentions a second, as measured on {cpus} cores and {gpus} GPUs",
            f"{mentions:g} mentions a pair; {price:g} dollars a node and hour",
        ),
        measured=True, started=started,
    )  # fmt: skip
