"""The sections of settings other than the stages and the placement (segments.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gemel_ray.errors import Mistake
from gemel_ray.setting import DEVICE, GPUS, NAME, Form, setting

_COLLECTION = Form(r"(https?://[^\s/]+/[^\s/]+)?", "(http://host:6333/collection, or empty)")


@dataclass(frozen=True, kw_only=True)
class Models:
    """`starter` stands for the small models that come with the package; else a folder or a hub name."""

    language: str = setting(
        "starter",
        "language model: folder or hub name (facebook/opt-6.7b, meta-llama/Llama-3.1-8B, ...)",
        form=NAME,
    )
    clip: str = setting(
        "starter", "CLIP: folder, ARCHITECTURE/PRETRAINED (ViT-L-14/openai) or hf-hub:NAME", form=NAME
    )
    clip_feature: Literal["hidden", "projected"] = setting(
        "hidden", "CLIP's feature before (hidden, as in GEMEL) or after (projected) its last projection"
    )
    mention_encoder: str = setting(
        "starter",
        "sentence encoder for mentions: folder or hub name (SimCSE), or clip for CLIP's text tower",
        form=NAME,
    )
    mention_pooling: Literal["auto", "pooler", "mean", "cls"] = setting(
        "auto", "how its token vectors become one; auto: as the model's files prescribe"
    )
    mapper: str = setting(
        "auto", "feature mapper: a file, none, or auto (the starter's with the starter's models)", form=NAME
    )
    end_of_name: Literal["newline", "eos"] = setting(
        "newline", "token that ends a name: newline, or eos (as in GEMEL)"
    )


@dataclass(frozen=True, kw_only=True)
class Input:
    """How documents are read."""

    fetch_official_images: bool = setting(
        False, "download the pictures at img_url of GEMEL's files, in which it is otherwise a key"
    )
    min_characters: int = setting(
        0,
        "shortest text that is linked; a shorter one is filtered: an error row, but not a failure",
        at_least=0,
        unit="characters",
        was="shortest",
    )
    max_characters: int = setting(
        0,
        "longest text that is linked, a longer one is filtered; 0: no limit",
        at_least=0,
        unit="characters",
        was="longest",
    )
    duplicates: Literal["keep", "drop"] = setting(
        "keep", "drop: filter a pair whose text and picture came before (reads all files twice)"
    )

    def __post_init__(self) -> None:
        if 0 < self.max_characters < self.min_characters:
            raise Mistake(
                "input.max_characters is less than input.min_characters: every text would be filtered"
            )


@dataclass(frozen=True, kw_only=True)
class Bank:
    """What a build puts beside the demonstrations it is given."""

    names: int = setting(
        100_000,
        "largest knowledge base whose names serve as examples; 0: never",
        at_least=0,
        unit="entities",
    )
    thumbnails: bool = setting(
        True, "keep the examples' pictures, 160 pixels wide, to show them with answers"
    )
    longest_name: int = setting(
        256, "longest name of an entity; an entity with a longer one is left out", at_least=8, unit="tokens"
    )
    longest_example: int = setting(
        512, "longest example; the text of a longer one is cut around its mention", at_least=32, unit="tokens"
    )
    ranker: int = setting(
        1000,
        "least number of solved examples for which a build fits a ranker; with fewer it takes the default "
        "one; 0: no ranker",
        at_least=0,
        unit="examples",
    )
    descriptions: int = setting(
        1_000_000,
        "largest knowledge base whose descriptions a build encodes; of a larger one only their words "
        "are used",
        at_least=0,
        unit="entities",
    )
    retrieval: Literal["none", "batch", "hard", "generated"] = setting(
        "none",
        "negatives with which a build trains a retrieval for the ranker (docs/ranking.md); none: no "
        "retrieval",
    )


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Where the demonstrations' vectors are searched."""

    address: str = setting(
        "",
        "http://host:6333/collection of a Qdrant server; empty: Qdrant's engine inside the process",
        form=_COLLECTION,
    )
    exact_below: int = setting(
        200_000,
        "below this number examples are compared by a matrix product, above it searched by HNSW",
        at_least=0,
        unit="points",
    )
    wait: float = setting(
        5.0,
        "time for which a job, a build or training waits for the server",
        at_least=0,
        unit="minutes",
    )
    ca: str = setting(
        "", "certificate file of the authority that signed the server's certificate (https://...)"
    )
    grpc: int = setting(
        0,
        "the server's gRPC port, usually 6334; 0: vectors are sent over HTTP",
        at_least=0,
        at_most=65_535,
    )
    on_disk: bool = setting(
        False, "keep a build's vectors and graph on the server's disk instead of in its memory"
    )
    quantized: bool = setting(
        False, "keep a copy with one byte per number in the server's memory, and search in it"
    )
    shards: int = setting(
        0,
        "parts of a build's collection, spread over the server's nodes; 0: the server's default",
        at_least=0,
        unit="parts",
    )
    replicas: int = setting(
        0, "copies of each part, on different nodes; 0: the server's default", at_least=0, unit="copies"
    )


@dataclass(frozen=True, kw_only=True)
class Train:
    """The feature mapper's training.

    Steps are optimiser steps. A look measures the dev loss.
    """

    prefix: int = setting(4, "length of the visual prefix of one picture", at_least=1, unit="visual vectors")
    hidden: int = setting(
        0,
        "units of an additional hidden layer with GELU; 0: a linear mapper (the paper)",
        at_least=0,
        unit="units",
    )
    start: Literal["ridge", "random"] = setting(
        "ridge", "ridge: a warm start by ridge regression onto names; random: as in the paper"
    )
    ridge: float = setting(
        1e-4,
        "strength of the warm start's regularisation, relative to the features' mean variance",
        at_least=0,
    )
    epochs: float = setting(5.0, "passes over the training mentions, at most", at_least=0, unit="epochs")
    batch: int = setting(16, "mentions in one step", at_least=1, unit="mentions")
    learning_rate: float = setting(
        3e-4, "learning rate, for float32 weights (the paper's 1e-6 is for float16)", above=0
    )
    warmup: float = setting(
        0.1, "first steps, in which the learning rate rises", at_least=0, at_most=1, unit="share of the steps"
    )
    weight_decay: float = setting(0.01, "weight decay of AdamW, not applied to biases", at_least=0)
    clip_norm: float = setting(1.0, "greatest norm of gradients; greater ones are scaled down", above=0)
    keep: int = setting(
        0,
        "steps for which common beginnings of prompts are stored, without gradients; 0: computed in "
        "each step",
        at_least=0,
        unit="steps",
    )
    evaluate_every: int = setting(
        25,
        "steps between two measurements of the dev loss, each with a checkpoint",
        at_least=1,
        unit="steps",
        was="look",
    )
    decode_every: int = setting(
        100, "steps between two measurements of dev accuracy, by decoding; 0: none", at_least=0, unit="steps"
    )
    dev_mentions: int = setting(96, "dev mentions used for a measurement", at_least=1, unit="mentions")
    patience: int = setting(
        10, "measurements without improvement before training stops", at_least=1, unit="measurements"
    )
    dtype: Literal["float32", "bfloat16"] = setting(
        "bfloat16", "number format of the frozen language model; the mapper is float32"
    )
    seed: int = setting(
        0, "seed of the order of mentions, and of a random start", at_least=0, at_most=2**32 - 1
    )
    workers: int = setting(
        1,
        "processes of Ray Train; any number gives the same curve",
        at_least=1,
        unit="processes",
        machine=True,
    )
    cpus: float = setting(1.0, "CPUs of a worker, as Ray counts them", at_least=0, unit="CPUs", machine=True)
    gpus: float = setting(0.0, "GPUs of a worker", form=GPUS, machine=True)
    device: str = setting("auto", "device of a worker without a GPU from Ray", form=DEVICE, machine=True)
    tokens: int = setting(
        4096,
        "tokens that a worker computes at once, padding included; limits its memory",
        at_least=1,
        unit="tokens",
        machine=True,
    )
    checkpointing: bool = setting(
        False, "recompute layers in the backward pass: less memory, more time", machine=True
    )
