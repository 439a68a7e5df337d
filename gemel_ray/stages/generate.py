"""Generate: the language model writes the name of an entity. What it does is in generating.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pyarrow as pa

from gemel_ray.errors import Mistake
from gemel_ray.records import CANDIDATE
from gemel_ray.setting import setting
from gemel_ray.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Generate(Stage):
    """Writes the name of an entity with the language model.

    `search: beam` keeps as many partial names as `beams` at each step (1 is greedy). `exact` finds the names
    that truly have the highest scores, unless it needs more than `exact_requests` of the engine; the manifest
    counts such mentions as `cut`.

    `score: paper` adds log-softmax over the whole vocabulary. `tree` renormalises over what the prefix tree
    allows at each step. A name's score is the sum over its tokens, divided by their number to the power of
    `length_penalty`. When the search has ended, `prior_weight` times the name's score without a question is
    subtracted from that sum.

    With a `neighbour_weight` w, the score is the logarithm of (1 - w) * P(name by the model) + w * P(name by
    the demonstrations). If the workspace has a ranker, the score is instead the weighted mean of the model's
    and the ranker's log-probabilities, normalised over the names that either knows. `ranking` is the ranker's
    weight: at 0 it is not used.

    Where all the weight is the ranker's (`ranking: 1`), or, without a ranker, the demonstrations'
    (`neighbour_weight: 1`), they answer alone, and the language model is not loaded.

    Of a mention of which the ranker is not sure, the model also judges those of the ranker's candidates that
    it did not write, down to a probability of `judged`: some tokens more, in the same passes.

    With `rerank`, where the ranker is not sure, the language model also chooses among that many of its best
    candidates, listed with their descriptions: one more pass after the same demonstrations. Weighted by
    `choice_weight`, this changes the ranker's probabilities among them.

    An answer whose probability (the softmax of the candidates' scores) is below `nil_threshold` is NIL.
    """

    work: ClassVar = "gemel_ray.stages.generating"
    reads: ClassVar = (
        "prompt", "beginning", "choice", "image_vector", "shots", "nearest", "votes", "likely",
        "chances", "reasons", "options",
    )  # fmt: skip
    writes: ClassVar = pa.schema(
        [
            pa.field("entity", pa.string()),
            pa.field("entity_id", pa.string()),
            pa.field("score", pa.float32()),
            pa.field("probability", pa.float32()),
            pa.field("candidates", pa.list_(CANDIDATE)),
            pa.field("why", pa.string()),
        ]
    )
    beams: int = setting(5, "number of beams, and of candidates", at_least=1, unit="candidates")
    search: Literal["beam", "exact"] = setting(
        "beam", "beam (with 1 beam: greedy), or exact: the candidates with the highest scores of all names"
    )
    exact_requests: int = setting(
        512,
        "limit of one exact search; beyond it the result is not proven, and counted as cut in the manifest",
        at_least=1,
        unit="requests",
        was="requests",
    )
    score: Literal["paper", "tree"] = setting(
        "tree", "tree: renormalised over what the prefix tree allows; paper: raw log-softmax"
    )
    length_penalty: float = setting(
        0.0, "exponent of the length by which a name's score is divided (the paper: 1.0)", at_least=0
    )
    prior_weight: float = setting(
        0.0, "weight of a name's score without a question, subtracted from each candidate's", at_least=0
    )
    neighbour_weight: float = setting(
        0.7,
        "weight of the demonstrations' votes beside the language model (kNN-LM); 1: the votes alone, "
        "without a language model",
        at_least=0,
        at_most=1,
        was="neighbours",
    )
    ranking: float = setting(
        0.9,
        "weight of the workspace's ranker, used instead of the votes; 1: the ranker alone, without a "
        "language model",
        at_least=0,
        at_most=1,
    )
    sure: float = setting(
        0.8,
        "probability above which the ranker answers without the language model; 1: never",
        at_least=0,
        at_most=1,
    )
    judged: float = setting(
        1.0,
        "least probability of the ranker's candidates that the language model scores though it did "
        "not write them; 1: none",
        above=0,
        at_most=1,
    )
    rerank: int = setting(
        0,
        "number of the ranker's best candidates among which the language model chooses; 0: no choice",
        at_least=2,
        at_most=26,
        or_zero=True,
        unit="candidates",
    )
    choice_weight: float = setting(
        0.5, "weight of this choice relative to the ranker's probabilities", at_least=0, at_most=1
    )
    nil_threshold: float = setting(
        0.0, "least probability of an answer; below it the answer is NIL", at_least=0, at_most=1
    )
    precision: float = setting(
        0.0,
        "wanted share of right answers among links: sets nil_threshold; 0: not used",
        at_least=0,
        at_most=1,
    )
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "bfloat16", "number format in which the language model computes"
    )
    length: int = setting(4096, "longest prompt with its name", at_least=1, unit="tokens")
    tensor_parallel: int = setting(1, "GPUs of one engine", at_least=1, unit="GPUs", machine=True)
    cache_gib: float = setting(2.0, "key-value cache on a CPU", above=0, unit="GiB", machine=True)
    gpu_memory: float = setting(
        0.9,
        "memory of a GPU that the engine uses, cache included",
        above=0,
        at_most=1,
        unit="share of a GPU's memory",
        machine=True,
    )
    block: int = setting(
        32,
        "size of a block of the key-value cache; only whole blocks are shared",
        at_least=1,
        unit="tokens",
        machine=True,
    )
    batch_tokens: int = setting(
        2048, "greatest number of tokens computed in one step", at_least=1, unit="tokens", machine=True
    )
    sequences: int = setting(
        256, "greatest number of requests decoded in one step", at_least=1, unit="sequences", machine=True
    )
    rounds: Literal["auto", "always", "never"] = setting(
        "auto",
        "beams in lock step inside vLLM's worker: auto (else by rollouts), always, never",
        machine=True,
    )
    columns: int = setting(
        128, "mentions searched in lock step at once", at_least=1, unit="mentions", machine=True
    )
    arena: float = setting(
        0.6,
        "part of the key-value cache that only rounds use",
        above=0,
        at_most=0.95,
        unit="share of the cache",
        machine=True,
    )
    shared_attention: Literal["auto", "always", "never"] = setting(
        "never",  # no GPU has run it yet
        "compute attention to shared demonstrations once for all beams: auto (large models on GPUs), "
        "always, never",
        machine=True,
    )

    def __post_init__(self) -> None:
        for name in ("nil_threshold", "precision", "prior_weight"):
            if getattr(self, name) and self.beams == 1:
                raise Mistake(f"generate.{name} compares candidates: it needs generate.beams of 2 or more")
        if self.batch_tokens < self.sequences:
            raise Mistake("generate.batch_tokens is at least generate.sequences: each takes one a step")
        if self.precision and self.nil_threshold:
            raise Mistake("generate.precision sets generate.nil_threshold: leave that 0")
        if self.neighbour_weight and self.prior_weight:
            raise Mistake(
                "generate.prior_weight and generate.neighbour_weight cannot be had both: set one to 0"
            )
