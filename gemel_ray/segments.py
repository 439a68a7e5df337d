"""Segments: how the configuration cuts the line of stages, and where each part runs, in the job and at the
endpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gemel_ray.errors import Mistake
from gemel_ray.setting import CLUSTER, GPUS, HOST, section, setting


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """Adjacent stages in one kind of process: how many, on what, and how much at once."""

    stages: tuple[str, ...] = setting(
        (),
        "adjacent stages; together the segments have all stages, in order (empty in a single "
        "segment: all stages)",
    )
    workers: int = setting(1, "number of processes", at_least=1, unit="processes")
    cpus: float = setting(1.0, "CPUs of each, as Ray counts them", at_least=0, unit="CPUs")
    gpus: float = setting(0.0, "GPUs of each: a share of one GPU, or whole ones", form=GPUS)
    threads: int = setting(
        0,
        "torch's threads in each; 0: all cores shared among the workers (on a cluster: cpus)",
        at_least=0,
        unit="threads",
    )
    batch: int = setting(
        64, "documents (after retrieve: mentions) in one batch", at_least=1, unit="documents"
    )
    overlap: int = setting(
        4,
        "batches that a worker computes at once, so that the engine never waits",
        at_least=1,
        unit="batches",
    )


def _refuse_fewer(least: int, most: int) -> None:
    if least > most:
        raise Mistake("min_replicas is more than max_replicas")


@dataclass(frozen=True, kw_only=True)
class OnlineSegment:
    """Adjacent stages in one kind of Serve replica: how many, on what, and how much at once."""

    stages: tuple[str, ...] = setting(
        (),
        "adjacent stages; together the segments have all stages, in order (empty in a single "
        "segment: all stages)",
    )
    min_replicas: int = setting(1, "fewest processes", at_least=1, unit="processes")
    max_replicas: int = setting(
        1,
        "most processes; more than min_replicas are started as the mentions in progress need them",
        at_least=1,
        unit="processes",
    )
    cpus: float = setting(1.0, "CPUs of each, as Ray counts them", at_least=0, unit="CPUs")
    gpus: float = setting(0.0, "GPUs of each: a share of one GPU, or whole ones", form=GPUS)
    threads: int = setting(
        0,
        "torch's threads in each; 0: all cores shared among the replicas (on a cluster: cpus)",
        at_least=0,
        unit="threads",
    )
    batch: int = setting(16, "waiting documents that are encoded in one pass", at_least=1, unit="documents")
    ongoing: int = setting(
        64,
        "mentions in one replica at once; above half of it, more replicas are started",
        at_least=1,
        unit="mentions",
    )
    surge: float = setting(
        0.0,
        "replicas started before the old ones end when all are renewed; the cluster needs room for them",
        at_least=0,
        at_most=1,
        unit="share of the replicas",
    )

    def __post_init__(self) -> None:
        _refuse_fewer(self.min_replicas, self.max_replicas)


@dataclass(frozen=True, kw_only=True)
class ApiOptions:
    """The processes that take requests: they read, check and answer; segments do the work."""

    min_replicas: int = setting(1, "fewest processes", at_least=1, unit="processes")
    max_replicas: int = setting(
        1,
        "most processes; more than min_replicas are started as the requests in progress need them",
        at_least=1,
        unit="processes",
    )
    ongoing: int = setting(
        100,
        "requests in one process at once; above it, another process is started",
        at_least=1,
        unit="requests",
    )

    def __post_init__(self) -> None:
        _refuse_fewer(self.min_replicas, self.max_replicas)


@dataclass(frozen=True, kw_only=True)
class Offline:
    """The Ray Data job."""

    address: str = setting(
        "local",
        "Ray: local starts it here, auto joins the cluster of this machine, or an address",
        form=CLUSTER,
    )
    sized: bool = setting(
        True, "fit the segments and sizes of generate that are left at their defaults to this machine"
    )
    engines_per_gpu: int = setting(
        0,
        "language models on each GPU, if the segments are fitted to this machine; 0: two of a small model on "
        "a large GPU, which the Python of one cannot fill, else one",
        at_least=0,
        at_most=8,
        unit="engines",
    )
    segments: tuple[SegmentOptions, ...] = (SegmentOptions(),)
    stall_minutes: float = setting(
        30.0,
        "time without any progress, model loading included, after which the job stops",
        above=0,
        unit="minutes",
    )


@dataclass(frozen=True, kw_only=True)
class Online:
    """The endpoint on Ray Serve, and its limits."""

    address: str = setting(
        "local",
        "Ray: local starts it here, auto joins the cluster of this machine, or an address",
        form=CLUSTER,
    )
    host: str = setting(
        "127.0.0.1", "address to listen at; 0.0.0.0: reachable from other machines", form=HOST
    )
    port: int = setting(8000, "port to listen at", at_least=1, at_most=65_535)
    hosts: tuple[str, ...] = setting(
        ("*.svc", "*.svc.cluster.local"),
        'host names of requests that are accepted besides IP addresses and names without a dot; "*": any',
        form=HOST,
    )
    sized: bool = setting(True, "as offline.sized")
    segments: tuple[OnlineSegment, ...] = (OnlineSegment(),)
    api: ApiOptions = section(ApiOptions, "processes that take requests; they share queue")
    queue: int = setting(
        128,
        "documents accepted at once, those in progress included; more get status 503",
        at_least=1,
        unit="documents",
    )
    wait: float = setting(
        10.0,
        "longest estimated waiting time of an accepted request; a longer one gets status 503",
        above=0,
        unit="seconds",
    )
    deadline: float = setting(
        60.0, "longest time of one request, which is then aborted with status 504", above=0, unit="seconds"
    )
    documents: int = setting(64, "most documents in one request", at_least=1, unit="documents")
    mentions: int = setting(50, "most mentions in one document", at_least=1, unit="mentions")
    characters: int = setting(20_000, "greatest length of one text", at_least=1, unit="characters")
    megabytes: float = setting(40.0, "greatest size of one request", above=0, unit="MiB")
    image_hosts: tuple[str, ...] = setting(
        (), "hosts whose pictures are fetched (*.example.org); empty: any public host", form=HOST
    )

    def __post_init__(self) -> None:
        if self.documents * self.api.max_replicas > self.queue:
            raise Mistake(
                "online.documents times online.api.max_replicas is at most online.queue, which they share"
            )


def spread(options: Offline, gpus: int) -> tuple[float, ...]:
    """The CPUs of the workers on each of a machine's GPUs, where the workers of every segment with a share
    take the GPUs in turn. Empty where Ray places them, which fills one GPU before the next: on a cluster, on
    one GPU, and where the shares do not fit so."""
    sharing = [s for s in options.segments if s.gpus]
    if options.address != "local" or gpus < 2 or all(s.gpus >= 1 for s in sharing):
        return ()
    if round(sum(math.ceil(s.workers / gpus) * s.gpus for s in sharing), 4) > 1:
        return ()
    return tuple(sum(len(range(gpu, s.workers, gpus)) * s.cpus for s in sharing) for gpu in range(gpus))
