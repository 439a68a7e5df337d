"""The default ranker, fitted on public data (default_maker.py), for a workspace with few examples or none."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from gemel_ray.errors import Mistake
from gemel_ray.ranking.examples import Encode
from gemel_ray.ranking.features import GROUPS, POPULARITY, RETRIEVAL, Group, Question, feature_names
from gemel_ray.ranking.ranker import Ranker

FILE = Path(__file__).with_name("default.safetensors")
REFIT = "fit the default ranker again: docs/ranking.md says how"
SAMPLE = "Apple Inc.: American technology company"  # its vector identifies an encoder
_RARITIES = (
    "description's words", "description's words less",
    "name's words in the text", "name's words in the text less",
    "facts told", "facts told less", "rarest fact told", "facts' words", "facts' words less", "facts shared",
    "facts shared less",
)  # fmt: skip
_FEWEST = 10  # entities
_SAME = 0.99  # cosine of two vectors of the sample, at least, by one encoder in other numbers


def default_groups() -> tuple[Group, ...]:
    """The evidence of the default ranker: all that means the same in every workspace."""
    return tuple(group for group in GROUPS if group.name not in (POPULARITY, RETRIEVAL))


def rarity_unit(entities: int) -> float:
    """The rarity of what one of this number of entities has: the default ranker's unit of rarity."""
    return math.log(max(_FEWEST, entities))


def rarity_columns() -> list[int]:
    """The columns of features that are sums of rarities: logarithms of how few of all entities have a word or
    a fact. In a larger knowledge base they are larger."""
    names = feature_names(default_groups())
    return [names.index(name) for name in _RARITIES]


def default_ranker(encode: Encode, entities: int, file: Path = FILE) -> Ranker:
    """The default ranker for a workspace with this encoder of texts and this number of entities. With another
    encoder than it was fitted with, it leaves the vectors out (`unencoded`). Raises Mistake if it was fitted
    on other features."""
    shipped = Ranker.load(file, REFIT)
    if shipped.features != feature_names(default_groups()):
        raise Mistake(f"{file} was fitted on other features: {REFIT}")
    vector, sample = encode([SAMPLE])[0], np.array(shipped.about["sample"], np.float32)
    same = vector.shape == sample.shape and float(vector @ sample) > _SAME
    no_bend = np.zeros((len(vector), len(vector)), np.float32)
    mean, scale = shipped.weights["mean"].copy(), shipped.weights["scale"].copy()
    rarities, unit = rarity_columns(), rarity_unit(entities)
    mean[rarities] *= unit
    scale[rarities] /= unit
    about = {"default": True, "encoded": same}
    weights = shipped.weights | {"mean": mean, "scale": scale, "bend": no_bend}
    return replace(shipped, weights=weights, about=about)


def unencoded(asked: Question) -> Question:
    """The question without vectors of texts."""
    return replace(asked, text_vector=np.zeros_like(asked.text_vector), mention_vector=None)
