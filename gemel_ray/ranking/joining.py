"""What the ranker says joined to what the language model says, over the names that either knows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from gemel_ray.engine.work import Candidate

_UNSAID = 3.0  # nats below the least likely name that one of both named: what it did not name is worth that


def joined(
    found: Sequence[Candidate], chances: dict[int, float], weight: float, count: int
) -> list[Candidate]:
    """The best `count` names, ranked by the weighted mean of both log-probabilities (logarithmic pooling),
    normalised over all of them. `chances`: the ranker's log-probabilities by leaf; `weight`: theirs."""
    said = {c.leaf: c.log_prob for c in found}
    least = min(said.values(), default=0.0) - _UNSAID
    rest = min(chances.values(), default=0.0) - _UNSAID
    pooled = {
        leaf: (1 - weight) * said.get(leaf, least) + weight * chances.get(leaf, rest)
        for leaf in said.keys() | chances.keys()
    }
    top = max(pooled.values())
    whole = top + math.log(sum(math.exp(p - top) for p in pooled.values()))
    ranked = sorted((-p, leaf) for leaf, p in pooled.items())[:count]
    return [Candidate(leaf, said.get(leaf, -math.inf), -p - whole) for p, leaf in ranked]


def likeliest(entities: Iterable[int], chances: Mapping[int, float]) -> list[int]:
    """Entities that bear one name, those first that the ranker gives better chances; the others, of which it
    knows nothing, in the order given."""
    return sorted(entities, key=lambda row: -chances.get(row, -math.inf))
