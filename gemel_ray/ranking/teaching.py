"""A retrieval taught on the examples, each half of them judged by what the other half taught."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gemel_ray.errors import Mistake
from gemel_ray.ranking import towers
from gemel_ray.ranking.context import Judged
from gemel_ray.ranking.towers import Asked, Frozen, Negatives

Vectors = npt.NDArray[np.float32]
_OTHERS = 40  # candidates that an example's negatives are drawn from


def crossed(
    known: Frozen, judged: Sequence[Judged], negatives: Negatives
) -> tuple[list[Vectors], dict[str, Vectors]]:
    """How well the candidates of each example fit, by towers that the other half of the examples taught; and
    the weights of those that all of them taught."""
    half, found = len(judged) // 2, list[Vectors]()
    for learning, asking in ((judged[half:], judged[:half]), (judged[:half], judged[half:])):
        made = _taught(known, learning, negatives)
        entities, weights = made.all_entities(known), made.weights()
        for one in asking:
            vectors = entities[one.evidence.rows].astype(np.float32)
            found.append(vectors @ towers.asked(weights, one.mention, one.text))
    return found, _taught(known, judged, negatives).weights()


def _taught(known: Frozen, judged: Sequence[Judged], negatives: Negatives) -> towers.Towers:
    """By the examples whose entity is described, against others that are: that some are not tells nothing."""
    described = [np.asarray(known.heads[one.evidence.rows].any(axis=1)) for one in judged]
    pairs = [(j, d) for j, d in zip(judged, described, strict=True) if j.right >= 0 and d[j.right]]
    named = [one for one, _ in pairs]
    if not named:
        raise Mistake(
            "a retrieval is taught on examples whose entities are described: set bank.retrieval=none"
        )
    right = np.array([one.evidence.rows[one.right] for one in named])
    others = [np.delete(one.evidence.rows, one.right)[np.delete(d, one.right)][:_OTHERS] for one, d in pairs]
    mentions, texts = np.stack([one.mention for one in named]), np.stack([one.text for one in named])
    return towers.taught(known, Asked(mentions, texts, right, others), negatives)
