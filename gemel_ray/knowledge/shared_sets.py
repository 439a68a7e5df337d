"""Shared demonstration sets: a few lists of solved examples that many mentions are shown alike.

What a prompt begins with is computed once and then found in the engine's prefix cache, so a mention that is
shown its set costs no more than what stands behind it. The bank's examples are clustered by their mentions'
vectors (k-means), and each cluster is shown by examples from its rim to its middle, of different entities.
Not in the paper: docs/performance.md has what it gives and what it takes. The same in every process.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gemel_ray.knowledge.bank import Bank
from gemel_ray.models.clip import Vectors, unit

Rows = npt.NDArray[np.int64]
_SAMPLE = 50_000  # examples looked at, of larger banks
_ROUNDS = 10


class SharedSets:
    """At most `number` sets of `size` solved examples of the bank."""

    def __init__(self, bank: Bank, number: int, size: int) -> None:
        random = np.random.default_rng(0)
        count = min(bank.examples, _SAMPLE)
        sample = (
            np.sort(random.choice(bank.examples, count, replace=False)) if count else np.empty(0, np.int64)
        )
        vectors = unit(np.asarray(bank.mention_vectors)[sample])
        self._centres = _centres(vectors, vectors[random.permutation(count)[:number]])
        nearness = vectors @ self._centres.T  # [examples, sets]
        member = nearness.argmax(axis=1) if count else np.empty(0, np.int64)
        self._rows = [
            _chosen(bank, sample, nearness[:, i], np.flatnonzero(member == i), size)
            for i in range(len(self._centres))
        ]

    def of(self, vectors: Vectors) -> list[Rows]:
        """The rows of the bank that mentions of these vectors, float32 [n, width], are shown."""
        if not self._rows:
            return [np.empty(0, np.int64)] * len(vectors)
        return [self._rows[i] for i in (unit(vectors) @ self._centres.T).argmax(axis=1)]


def _centres(vectors: Vectors, centres: Vectors) -> Vectors:
    """k-means of unit vectors [n, width] by cosine, from these centres on; one that nobody is near stays."""
    for _ in range(_ROUNDS):
        member = (vectors @ centres.T).argmax(axis=1) if len(centres) else np.empty(0, np.int64)
        sums = np.zeros_like(centres)
        np.add.at(sums, member, vectors)
        centres = np.where(sums.any(axis=1, keepdims=True), unit(sums), centres)
    return centres


def _chosen(bank: Bank, sample: Rows, nearness: Vectors, members: Rows, size: int) -> Rows:
    """`size` examples of a cluster, from its rim to its middle, each of another entity while there are
    such; a small cluster borrows from its surroundings."""
    if len(members) < size:
        members = np.argsort(-nearness, kind="stable")[: 4 * size]
    members = members[np.argsort(nearness[members], kind="stable")]
    rows = sample[members]
    targets = [bank.target(int(row)) for row in rows]
    last = {target: at for at, target in enumerate(targets)}  # the most central of each entity
    different = np.array(sorted(last.values()), np.int64)
    pool = different if len(different) >= size else np.arange(len(rows))
    return rows[pool[np.unique(np.linspace(0, len(pool) - 1, min(size, len(pool))).round().astype(int))]]
