"""Generate: the language model writes the name of an entity. What it does is in generating.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import pyarrow as pa

from gemel_ray.records import CANDIDATE
from gemel_ray.stage import MACHINE, Stage, Work

if TYPE_CHECKING:
    from gemel_ray.knowledge.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Generate(Stage):
    """`beams` is the number of candidates wanted. `search`: `beam` goes on with so many names at once (1 is
    greedy); `exact` finds those that truly have the highest scores, unless it needs more than `requests` of
    the engine (the manifest's `cut` counts such mentions). `score`: `paper` adds log-softmax over
    the whole vocabulary, `tree` renormalises over what the tree allows at each step. A name is ranked by the
    sum over its tokens divided by their number to the power of `length_penalty`; `prior_weight` times what
    the model gives the name without a question is taken off that sum when the search has ended. With
    `neighbours` the score is the logarithm of (1 - neighbours) * P(name), as the model says it, plus
    neighbours * P(name), as the demonstrations alone say it. Below `nil_threshold` of probability (the
    softmax of the candidates' scores) the answer is NIL. The other fields are the engine's (see
    EngineOptions).
    """

    reads: ClassVar = (
        "prompt", "beginning", "image_vector", "shots", "nearest", "similarities", "options",
    )  # fmt: skip
    writes: ClassVar = pa.schema(
        [
            pa.field("entity", pa.string()),
            pa.field("entity_id", pa.string()),
            pa.field("score", pa.float32()),
            pa.field("probability", pa.float32()),
            pa.field("candidates", pa.list_(CANDIDATE)),
        ]
    )
    beams: int = 5
    search: Literal["beam", "exact"] = "beam"
    requests: int = 512
    score: Literal["paper", "tree"] = "tree"
    length_penalty: float = 0.0
    prior_weight: float = 0.0
    neighbours: float = 0.5
    nil_threshold: float = 0.0
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    length: int = 4096
    tensor_parallel: int = field(default=1, metadata=MACHINE)
    cache_gib: float = field(default=2.0, metadata=MACHINE)
    gpu_memory: float = field(default=0.9, metadata=MACHINE)
    block: int = field(default=32, metadata=MACHINE)
    batch_tokens: int = field(default=2048, metadata=MACHINE)
    sequences: int = field(default=256, metadata=MACHINE)

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ValueError("generate.beams must be at least 1")
        for setting in ("nil_threshold", "prior_weight"):
            if getattr(self, setting) and self.beams == 1:
                raise ValueError(
                    f"generate.{setting} compares candidates: it needs generate.beams of 2 or more"
                )

        if not 0 <= self.neighbours <= 1:
            raise ValueError("generate.neighbours is a weight from 0 to 1")
        if self.neighbours and self.prior_weight:
            raise ValueError("generate.prior_weight and generate.neighbours cannot be had both: set one to 0")

    def start(self, workspace: Workspace) -> Work:
        from gemel_ray.stages.generating import Generating  # with torch, which the driver does without

        return Generating(self, workspace)
