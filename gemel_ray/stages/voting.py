"""How much each of a mention's nearest examples counts: by its mention, and by its picture.

An example counts by the cosine of the mentions, and by that of the pictures. Which of the two says more
differs from mention to mention: of "this flag" only the picture does, of "Obama" the word. The examples
themselves decide: each is left out once, and the others vote for its target, by mention and by picture. The
share of votes that the targets get, on average, is the weight of either way. Not in the paper.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gemel_ray.knowledge.bank import Bank
from gemel_ray.models.clip import unit

TEMPERATURE = 0.02  # of cosines: an example that is nearer by as much counts for e times
Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


def votes(bank: Bank, rows: Rows, cosines: Vectors, picture: Vectors | None) -> Vectors:
    """The share of each of `rows` of the bank, float32 [n]. Their mentions have these `cosines`; `picture` is
    CLIP's feature of the mention's picture [width]; without one the mentions decide."""
    by_mention = _shares(cosines)
    if picture is None:
        return by_mention
    places = np.array([bank.image_row(row) for row in rows.tolist()], np.int64)
    seen = np.flatnonzero(places >= 0)
    if not len(seen):
        return by_mention
    pictures = unit(bank.image_vectors[places[seen]])
    by_picture = np.zeros_like(by_mention)
    by_picture[seen] = _shares(pictures @ unit(picture[None])[0])
    targets = np.array([bank.target(int(row)) for row in rows])
    mentions = _predicted(unit(bank.mention_vectors[rows]), targets)
    looks = _predicted(pictures, targets[seen])
    weight = looks / (mentions + looks) if mentions + looks else 0.5
    return np.float32(1 - weight) * by_mention + np.float32(weight) * by_picture


def _shares(cosines: Vectors) -> Vectors:
    """Along the last axis; nothing where there is nobody to vote."""
    if not cosines.shape[-1]:
        return cosines
    made = np.exp((cosines - cosines.max(-1, keepdims=True)) / TEMPERATURE)
    shares: Vectors = (made / made.sum(-1, keepdims=True)).astype(np.float32)
    return shares


def _predicted(vectors: Vectors, targets: npt.NDArray[np.str_]) -> float:
    """The share of votes that examples with these unit vectors [n, width] get for their targets, each from
    the others, on average."""
    if len(vectors) < 2:
        return 0.0
    near = vectors @ vectors.T
    np.fill_diagonal(near, -np.inf)
    return float((_shares(near) * (targets[:, None] == targets)).sum(-1).mean())
