"""What ray_config.yaml says, as frozen dataclasses.

Values come, later ones winning, from: the dataclasses' defaults, the file, the settings a workspace
carries (one made by import-gemel brings the paper's), and --set a.b=value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from gemel_ray.checked import ConfigError, made, merged, parsed
from gemel_ray.stage import MACHINE
from gemel_ray.stages.assemble import Assemble
from gemel_ray.stages.detect import Detect
from gemel_ray.stages.encode import Encode
from gemel_ray.stages.generate import Generate
from gemel_ray.stages.retrieve import Retrieve


@dataclass(frozen=True, kw_only=True)
class Models:
    """`starter` stands for the small models that come with the package; else a folder or a hub name."""

    language: str = "starter"
    clip: str = "starter"  # also ARCHITECTURE/PRETRAINED, as open_clip names them
    clip_feature: Literal["hidden", "projected"] = "hidden"  # before or after CLIP's last projection
    mention_encoder: str = "starter"  # or clip: CLIP's own text tower
    mention_pooling: Literal["auto", "pooler", "mean", "cls"] = "auto"
    mapper: str = "auto"  # a file, none, or auto: the starter's with the starter's models
    end_of_name: Literal["newline", "eos"] = "newline"  # the token that ends a name


@dataclass(frozen=True, kw_only=True)
class Input:
    """How documents are read."""

    fetch_official_images: bool = False  # img_url of the official form is a key; True downloads it
    shortest: int = 0  # characters of a text; one of fewer is filtered
    longest: int = 0  # one of more is filtered; 0: none is
    duplicates: Literal["keep", "drop"] = "keep"  # drop filters a pair whose text and picture came before


@dataclass(frozen=True, kw_only=True)
class Bank:
    """What a build puts beside the demonstrations it is given."""

    names: int = 100_000  # a knowledge base of at most so many entities shows its own names as examples
    thumbnails: bool = True  # keep the examples' pictures, small, for people who look at an answer


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Where the demonstrations' vectors are searched."""

    address: str = ""  # http://host:6333/collection of a Qdrant server; empty: the engine in this process
    exact_below: int = 200_000  # points; more are searched by HNSW


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """Adjacent stages in one kind of process: how many, on what, and how much at once."""

    stages: tuple[str, ...]
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    threads: int = 0  # of torch in each worker; 0: all cores shared among the workers (on a cluster: cpus)
    batch: int = 64  # documents (after Retrieve: mentions) given at once
    overlap: int = 4  # batches under way at once in a worker


@dataclass(frozen=True, kw_only=True)
class Offline:
    """The Ray Data job."""

    address: str = "local"  # of a Ray cluster (auto: the one this machine is in); local: start one
    segments: tuple[SegmentOptions, ...] = (
        SegmentOptions(stages=("detect", "encode", "retrieve", "assemble", "generate")),
    )
    stall_minutes: float = 30.0  # without any progress, model loading included, before the job gives up


@dataclass(frozen=True, kw_only=True)
class OnlineSegment:
    """Adjacent stages in one kind of Serve replica: how many, on what, and how much at once."""

    stages: tuple[str, ...]
    min_replicas: int = 1
    max_replicas: int = 1  # more than min_replicas: as many as documents under way ask for
    cpus: float = 1.0
    gpus: float = 0.0
    threads: int = 0  # of torch in each replica; 0: all cores shared among the replicas (on a cluster: cpus)
    batch: int = 16  # documents that waited meanwhile, encoded in one pass
    ongoing: int = 64  # documents in a replica at once; from half of it on, more replicas are started

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ValueError("min_replicas is at least 1, and at most max_replicas")
        if self.batch < 1 or self.ongoing < 1:
            raise ValueError("batch and ongoing must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Online:
    """The endpoint on Ray Serve, and what it takes from strangers."""

    address: str = "local"  # of a Ray cluster (auto: the one this machine is in); local: start one
    host: str = "127.0.0.1"  # 0.0.0.0: also from other machines
    port: int = 8000
    hosts: tuple[str, ...] = ("*.svc", "*.svc.cluster.local")  # by which it is asked, beside addresses
    segments: tuple[OnlineSegment, ...] = (
        OnlineSegment(stages=("detect", "encode", "retrieve", "assemble", "generate")),
    )
    queue: int = 128  # documents taken in at once, those under way included; beyond: 503
    wait: float = 10.0  # seconds of work, as estimated, ahead of a request that is let in; beyond: 503
    deadline: float = 60.0  # seconds of a request; then it is aborted: 504
    documents: int = 64  # of one request
    mentions: int = 50  # of one document
    characters: int = 20_000  # of one text
    megabytes: float = 40.0  # of one request
    image_hosts: tuple[str, ...] = ()  # whose images are fetched, as *.example.org; none: any public host's

    def __post_init__(self) -> None:
        if not 1 <= self.documents <= self.queue:
            raise ValueError("online.documents is at least 1, and at most online.queue")
        if self.wait <= 0:
            raise ValueError("online.wait must be more than 0 seconds")


@dataclass(frozen=True, kw_only=True)
class Train:
    """The feature mapper's training. Steps are optimiser steps; a look measures the dev loss."""

    prefix: int = 4  # visual vectors a picture
    hidden: int = 0  # 0: linear (the paper); n: beside it, a hidden layer of n with GELU
    start: Literal["ridge", "random"] = "ridge"  # ridge: prefixes spell names from the first step on
    ridge: float = 1e-4  # of the warm start, against the features' mean variance
    epochs: float = 5.0
    batch: int = 16  # mentions a step
    learning_rate: float = 3e-4  # of float32 weights: the paper's 1e-6 never left its warm-up, in float16
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.01  # not on biases
    clip_norm: float = 1.0
    look: int = 25  # steps between two looks, and two checkpoints
    decode_every: int = 100  # steps between two measurements of dev accuracy, by decoding; 0: none
    dev_mentions: int = 96  # looked at
    patience: int = 10  # looks without anything better before it stops
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the frozen language model; the mapper is float32
    seed: int = 0
    workers: int = field(default=1, metadata=MACHINE)
    cpus: float = field(default=1.0, metadata=MACHINE)  # of a worker, as Ray counts them
    gpus: float = field(default=0.0, metadata=MACHINE)
    device: str = field(default="auto", metadata=MACHINE)  # of workers without GPUs by Ray
    tokens: int = field(default=4096, metadata=MACHINE)  # computed at once by a worker, padding included
    checkpointing: bool = field(default=False, metadata=MACHINE)  # recompute layers: less memory, more time

    def __post_init__(self) -> None:
        for name in ("prefix", "batch", "look", "dev_mentions", "patience", "workers", "tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1")
        for name in ("hidden", "epochs", "decode_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} must not be negative")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole of ray_config.yaml."""

    models: Models = field(default_factory=Models)
    input: Input = field(default_factory=Input)
    detect: Detect = field(default_factory=Detect)
    encode: Encode = field(default_factory=Encode)
    retrieve: Retrieve = field(default_factory=Retrieve)
    assemble: Assemble = field(default_factory=Assemble)
    generate: Generate = field(default_factory=Generate)
    bank: Bank = field(default_factory=Bank)
    vectors: Vectors = field(default_factory=Vectors)
    offline: Offline = field(default_factory=Offline)
    online: Online = field(default_factory=Online)
    train: Train = field(default_factory=Train)

    def plain(self) -> dict[str, Any]:
        """As nested dictionaries, for files."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def fingerprint(self, *facts: object) -> str:
        """Equal for runs whose results may be compared: what the stages do, by which models, on which
        knowledge (`facts`); not where they run."""
        stages = (self.detect, self.encode, self.retrieve, self.assemble, self.generate)
        meaning: dict[str, Any] = {
            s.name: {f.name: getattr(s, f.name) for f in fields(s) if "machine" not in f.metadata}
            for s in stages
        }
        meaning |= {"models": asdict(self.models), "input": asdict(self.input)}
        meaning["exact_below"] = self.vectors.exact_below
        text = json.dumps([meaning, *map(repr, facts)], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


# The paper's way (section 4.1), as --set takes it. It shows training mentions only, no names.
PAPER = (
    "bank.names=0",
    "retrieve.by=mention",
    "retrieve.names=false",
    "retrieve.words=0",
    "retrieve.sets=0",
    "retrieve.demonstrations=16",
    "generate.search=beam",
    "generate.beams=5",
    "generate.score=paper",
    "generate.length_penalty=1.0",
    "generate.prior_weight=0",
    "generate.neighbours=0",
)


def load(file: Path | None, carried: Mapping[str, Any], overrides: Iterable[str]) -> Config:
    """The configuration of `file` (None: all defaults), under a workspace's settings and --set options."""
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = yaml.safe_load(file.read_text()) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
            raise ConfigError(f"cannot read the configuration {file}: {fault}") from fault
    values = merged(values, carried)
    for override in overrides:
        values = merged(values, parsed(override))
    config: Config = made(Config, values, "")
    return config
