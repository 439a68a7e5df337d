"""The default ranker, fitted on public data (default_maker.py), for a workspace with few examples or none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from gemel_ray.errors import Mistake
from gemel_ray.ranking.examples import Encode
from gemel_ray.ranking.features import GROUPS, POPULARITY, RETRIEVAL, Group, Question, feature_names
from gemel_ray.ranking.ranker import Ranker

FILE = Path(__file__).with_name("default.safetensors")
REFIT = "fit the default ranker anew: docs/ranking.md says how"
SAMPLE = "Apple Inc.: American technology company"  # its vector identifies an encoder
_SAME = 0.99  # cosine of two vectors of the sample, at least, by one encoder in other numbers


def default_groups() -> tuple[Group, ...]:
    """The evidence of the default ranker: all that means the same in every workspace."""
    return tuple(group for group in GROUPS if group.name not in (POPULARITY, RETRIEVAL))


def default_ranker(encode: Encode, file: Path = FILE) -> Ranker:
    """The default ranker for a workspace with this encoder of texts. Of another encoder than it was fitted
    with, it leaves the vectors out (`unencoded`). Raises Mistake if it was fitted on other features."""
    shipped = Ranker.load(file, REFIT)
    if shipped.features != feature_names(default_groups()):
        raise Mistake(f"{file} was fitted on other features: {REFIT}")
    vector, sample = encode([SAMPLE])[0], np.array(shipped.about["sample"], np.float32)
    same = vector.shape == sample.shape and float(vector @ sample) > _SAME
    no_bend = np.zeros((len(vector), len(vector)), np.float32)
    about = {"default": True, "encoded": same}
    return replace(shipped, weights=shipped.weights | {"bend": no_bend}, about=about)


def unencoded(asked: Question) -> Question:
    """The question without vectors of texts."""
    return replace(asked, text_vector=np.zeros_like(asked.text_vector), mention_vector=None)
