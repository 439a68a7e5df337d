"""The sections of ray_config.yaml that belong to no stage. Imports nothing but how settings are declared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gemel_ray.segments import STAGES, ApiOptions, OnlineSegment, SegmentOptions
from gemel_ray.setting import CLUSTER, DEVICE, GPUS, HOST, NAME, Form, setting

_COLLECTION = Form(r"(https?://[^\s/]+/[^\s/]+)?", "(http://host:6333/collection, or empty)")


@dataclass(frozen=True, kw_only=True)
class Models:
    """`starter` stands for the small models that come with the package; else a folder or a hub name."""

    language: str = setting("starter", form=NAME)
    clip: str = setting("starter", form=NAME)  # also ARCHITECTURE/PRETRAINED, as open_clip names them
    clip_feature: Literal["hidden", "projected"] = "hidden"  # before or after CLIP's last projection
    mention_encoder: str = setting("starter", form=NAME)  # or clip: CLIP's own text tower
    mention_pooling: Literal["auto", "pooler", "mean", "cls"] = "auto"
    mapper: str = setting("auto", form=NAME)  # a file, none, or auto: the starter's with the starter's models
    end_of_name: Literal["newline", "eos"] = "newline"  # the token that ends a name


@dataclass(frozen=True, kw_only=True)
class Input:
    """How documents are read."""

    fetch_official_images: bool = False  # img_url of the official form is a key; True downloads it
    shortest: int = setting(0, at_least=0, unit="characters")  # of a text; one of fewer is filtered
    longest: int = setting(0, at_least=0, unit="characters")  # one of more is filtered; 0: none is
    duplicates: Literal["keep", "drop"] = "keep"  # drop filters a pair whose text and picture came before

    def __post_init__(self) -> None:
        if 0 < self.longest < self.shortest:
            raise ValueError("input.longest is less than input.shortest: every text would be filtered")


@dataclass(frozen=True, kw_only=True)
class Bank:
    """What a build puts beside the demonstrations it is given."""

    # A knowledge base of at most so many entities shows its own names as examples.
    names: int = setting(100_000, at_least=0, unit="entities")
    thumbnails: bool = True  # keep the examples' pictures, small, for people who look at an answer
    # An entity with a longer name is left out; the text of a longer example is cut around its mention.
    longest_name: int = setting(256, at_least=8, unit="tokens")
    longest_example: int = setting(512, at_least=32, unit="tokens")
    # Solved examples from which on a ranker is fitted on them.
    ranker: int = setting(1000, at_least=0, unit="examples")


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Where the demonstrations' vectors are searched."""

    address: str = setting("", form=_COLLECTION)  # of a Qdrant server; empty: the engine in this process
    # Fewer points are compared by one matrix product, more are searched by HNSW.
    exact_below: int = setting(200_000, at_least=0, unit="points")
    # Of a Qdrant server:
    wait: float = setting(5.0, at_least=0, unit="minutes")  # for it, before a job, a build or training stops
    ca: str = ""  # the certificate file of the authority that signed its own; empty: those that all trust
    grpc: int = setting(0, at_least=0, at_most=65_535)  # its port, usually 6334; 0: vectors go over HTTP, too
    on_disk: bool = False  # a build's vectors and graph are kept there, and read as they are asked for
    quantized: bool = False  # and a copy of a byte a number in memory, which the graph is searched by
    shards: int = setting(0, at_least=0, unit="parts")  # of a build's collection; 0: as the server has it
    # Of each part, on nodes of their own; 0: as the server has it.
    replicas: int = setting(0, at_least=0, unit="copies")


@dataclass(frozen=True, kw_only=True)
class Offline:
    """The Ray Data job."""

    # Of a Ray cluster (auto: the one this machine is in); local: start one.
    address: str = setting("local", form=CLUSTER)
    # Segments, and of generate what its GPU decides, where they are left at their defaults, become what fits
    # this machine (gemel-ray doctor says what, and why).
    sized: bool = True
    segments: tuple[SegmentOptions, ...] = (SegmentOptions(stages=STAGES),)
    # Without any progress, model loading included, before the job gives up.
    stall_minutes: float = setting(30.0, above=0, unit="minutes")


@dataclass(frozen=True, kw_only=True)
class Online:
    """The endpoint on Ray Serve, and what it takes from strangers."""

    # Of a Ray cluster (auto: the one this machine is in); local: start one.
    address: str = setting("local", form=CLUSTER)
    host: str = setting("127.0.0.1", form=HOST)  # 0.0.0.0: also from other machines
    port: int = setting(8000, at_least=1, at_most=65_535)
    # By which it is asked, beside addresses.
    hosts: tuple[str, ...] = setting(("*.svc", "*.svc.cluster.local"), form=HOST)
    sized: bool = True  # as offline.sized
    segments: tuple[OnlineSegment, ...] = (OnlineSegment(stages=STAGES),)
    api: ApiOptions = field(default_factory=ApiOptions)
    # Taken in at once, those under way included; beyond: 503.
    queue: int = setting(128, at_least=1, unit="documents")
    # Of work, as estimated, ahead of a request that is let in; beyond: 503.
    wait: float = setting(10.0, above=0, unit="seconds")
    deadline: float = setting(60.0, above=0, unit="seconds")  # of a request; then it is aborted: 504
    documents: int = setting(64, at_least=1, unit="documents")  # of one request
    mentions: int = setting(50, at_least=1, unit="mentions")  # of one document
    characters: int = setting(20_000, at_least=1, unit="characters")  # of one text
    megabytes: float = setting(40.0, above=0, unit="MiB")  # of one request
    # Whose images are fetched, as *.example.org; none: any public host's.
    image_hosts: tuple[str, ...] = setting((), form=HOST)

    def __post_init__(self) -> None:
        if self.documents * self.api.max_replicas > self.queue:
            raise ValueError(
                "online.documents times online.api.max_replicas is at most online.queue, which they share"
            )


@dataclass(frozen=True, kw_only=True)
class Train:
    """The feature mapper's training. Steps are optimiser steps; a look measures the dev loss."""

    prefix: int = setting(4, at_least=1, unit="visual vectors")  # of a picture
    # 0: linear (the paper); n: beside it, a hidden layer of n with GELU.
    hidden: int = setting(0, at_least=0, unit="units")
    start: Literal["ridge", "random"] = "ridge"  # ridge: prefixes spell names from the first step on
    ridge: float = setting(1e-4, at_least=0)  # of the warm start, against the features' mean variance
    epochs: float = setting(5.0, at_least=0, unit="epochs")
    batch: int = setting(16, at_least=1, unit="mentions")  # a step
    # Of float32 weights: the paper's 1e-6 never left its warm-up, in float16.
    learning_rate: float = setting(3e-4, above=0)
    warmup: float = setting(0.1, at_least=0, at_most=1, unit="share of the steps")
    weight_decay: float = setting(0.01, at_least=0)  # not on biases
    clip_norm: float = setting(1.0, above=0)
    look: int = setting(25, at_least=1, unit="steps")  # between two looks, and two checkpoints
    # Between two measurements of dev accuracy, by decoding; 0: none.
    decode_every: int = setting(100, at_least=0, unit="steps")
    dev_mentions: int = setting(96, at_least=1, unit="mentions")  # looked at
    patience: int = setting(10, at_least=1, unit="looks")  # without anything better before it stops
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the frozen language model; the mapper is float32
    seed: int = setting(0, at_least=0, at_most=2**32 - 1)
    workers: int = setting(1, at_least=1, unit="processes", machine=True)
    cpus: float = setting(1.0, at_least=0, unit="CPUs", machine=True)  # of a worker, as Ray counts them
    gpus: float = setting(0.0, form=GPUS, machine=True)
    device: str = setting("auto", form=DEVICE, machine=True)  # of workers without GPUs by Ray
    # Computed at once by a worker, padding included.
    tokens: int = setting(4096, at_least=1, unit="tokens", machine=True)
    checkpointing: bool = setting(False, machine=True)  # recompute layers: less memory, more time
