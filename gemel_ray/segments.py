"""Segments: how the configuration cuts the line of stages, and where each part runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from gemel_ray.checked import ConfigError, nearest
from gemel_ray.setting import GPUS, setting

STAGES = ("detect", "encode", "retrieve", "assemble", "generate")


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """Adjacent stages in one kind of process: how many, on what, and how much at once."""

    stages: tuple[str, ...]
    workers: int = setting(1, at_least=1, unit="processes")
    cpus: float = setting(1.0, at_least=0, unit="CPUs")
    gpus: float = setting(0.0, form=GPUS)
    # Of torch in each worker; 0: all cores shared among the workers (on a cluster: cpus).
    threads: int = setting(0, at_least=0, unit="threads")
    batch: int = setting(64, at_least=1, unit="documents")  # (after Retrieve: mentions) given at once
    overlap: int = setting(4, at_least=1, unit="batches")  # under way at once in a worker


@dataclass(frozen=True, kw_only=True)
class OnlineSegment:
    """Adjacent stages in one kind of Serve replica: how many, on what, and how much at once."""

    stages: tuple[str, ...]
    min_replicas: int = setting(1, at_least=1, unit="processes")
    # More than min_replicas: as many as mentions under way ask for.
    max_replicas: int = setting(1, at_least=1, unit="processes")
    cpus: float = setting(1.0, at_least=0, unit="CPUs")
    gpus: float = setting(0.0, form=GPUS)
    # Of torch in each replica; 0: all cores shared among the replicas (on a cluster: cpus).
    threads: int = setting(0, at_least=0, unit="threads")
    batch: int = setting(16, at_least=1, unit="documents")  # that waited meanwhile, encoded in one pass
    # In a replica at once; from half of it on, more replicas are started.
    ongoing: int = setting(64, at_least=1, unit="mentions")
    # Started beside the old ones when all are renewed, as a share of them; without room Serve waits for ever.
    surge: float = setting(0.0, at_least=0, at_most=1, unit="share of the replicas")

    def __post_init__(self) -> None:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas is more than max_replicas")


@dataclass(frozen=True, kw_only=True)
class ApiOptions:
    """The processes that take requests: they read, check and answer; segments do the work."""

    min_replicas: int = setting(1, at_least=1, unit="processes")
    # More than min_replicas: as many as requests inside ask for.
    max_replicas: int = setting(1, at_least=1, unit="processes")
    # In a process at once, beyond which another one is started.
    ongoing: int = setting(100, at_least=1, unit="requests")

    def __post_init__(self) -> None:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas is more than max_replicas")


def in_line(where: str, segments: Sequence[SegmentOptions | OnlineSegment]) -> None:
    """Raise ConfigError unless the segments are the stages' line, cut somewhere."""
    named = [stage for options in segments for stage in options.stages]
    right = f"{where} must hold {', '.join(STAGES)}, in this order and each once"
    for stage in named:
        if stage not in STAGES:
            raise ConfigError(f"{right}; there is no stage {stage}: {nearest(stage, STAGES)}")
        if named.count(stage) > 1:
            raise ConfigError(f"{right}; {stage} is there {named.count(stage)} times")
    if missing := [stage for stage in STAGES if stage not in named]:
        raise ConfigError(f"{right}; {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    if named != list(STAGES):
        raise ConfigError(f"{right}, not {', '.join(named)}")
    if empty := [i for i, options in enumerate(segments) if not options.stages]:
        raise ConfigError(f"{where}[{empty[0]}] has no stages")


def threads(asked: int, cpus: float, processes: int, address: str) -> int:
    """Of torch in a process, where Ray gives it one unless told: as many as `asked`; else what `cpus` say,
    or, on a Ray of our own, its share of the cores."""
    here = (os.cpu_count() or 1) // processes if address == "local" else 0
    return asked or max(1, here, int(cpus))
