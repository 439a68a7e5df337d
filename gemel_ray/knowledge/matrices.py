"""The bank's vectors, searched by one matrix product for many queries: exact, with 100,000 vectors a
millisecond per query and core. The bank's files are mapped, so all processes share them.

Qdrant's copy is written from the same matrices; it is searched if a bank is larger than
`vectors.exact_below` or a server is configured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from gemel_ray.knowledge.bank import Bank
from gemel_ray.knowledge.vectors import Matrix, Points, Ranked, Without, empty, stack
from gemel_ray.models.encoders import unit

_SCORES: Final = 1 << 24  # in memory at once, 64 MiB
_UNIT: Final = 1e-6  # how far a length may differ from 1


@dataclass(frozen=True)
class _Named:
    """Vectors [n, width] of one name, with their reciprocal lengths if they are not 1, for cosines. Row i of
    the bank has vector `vector_of[i - first]` (if that is below 0, none), or, without `vector_of`, vector
    i - first."""

    vectors: Matrix
    scale: Matrix | None
    first: int = 0
    vector_of: npt.NDArray[np.int64] | None = None

    @classmethod
    def of(cls, vectors: Matrix, first: int = 0, vector_of: npt.NDArray[np.int64] | None = None) -> _Named:
        length = np.linalg.norm(vectors, axis=1)
        is_unit = bool((np.abs(length - 1) < _UNIT).all())
        scale = None if is_unit else (1 / np.maximum(length, 1e-30)).astype(np.float32)
        return cls(vectors, scale, first, vector_of)

    def __len__(self) -> int:
        """The number of rows of the bank that are searched."""
        return len(self.vectors if self.vector_of is None else self.vector_of)

    def cosines(self, queries: Matrix) -> Matrix:
        """Cosines of unit `queries` [n, width], float32 [n, rows]; minus infinity for rows without a
        vector."""
        scores: Matrix = queries @ self.vectors.T
        if self.scale is not None:
            scores *= self.scale
        if self.vector_of is None:
            return scores
        scores = scores[:, self.vector_of]
        scores[:, self.vector_of < 0] = -np.inf
        return scores


class Matrices:
    """A bank's vectors, read-only."""

    def __init__(self, bank: Bank) -> None:
        self._count = len(bank)
        mentions, pictures = np.asarray(bank.mention_vectors), np.asarray(bank.image_vectors)
        self._named = {"mention": _Named.of(mentions[: bank.examples])}
        if bank.examples < len(bank):
            self._named["name"] = _Named.of(mentions[bank.examples :], bank.examples)
        if len(pictures):
            self._named["image"] = _Named.of(pictures, 0, bank.table["image_row"].to_numpy().astype(np.int64))
        self.widths = {name: named.vectors.shape[1] for name, named in self._named.items()}

    def count(self) -> int:
        return self._count

    def upsert(self, points: Points) -> None:
        raise TypeError("a bank's own vectors are only read")

    def finish(self, graph: bool) -> None:
        """Do nothing: nothing can be added."""

    def close(self) -> None:
        """Do nothing: the files belong to the bank."""

    def nearest(self, name: str, queries: Matrix, without: Without, depth: int, exact: bool) -> Ranked:
        named = self._named[name]
        return stack([empty(0, 0), *self._parts(named, unit(queries), without, min(depth, len(named)))])

    def _parts(self, named: _Named, queries: Matrix, without: Without, depth: int) -> Iterator[Ranked]:
        step = max(1, _SCORES // max(1, len(named)))
        for start in range(0, len(queries), step):
            scores = named.cosines(queries[start : start + step])
            for line, rows in zip(scores, without[start : start + step], strict=True):
                out = np.asarray(rows, np.int64) - named.first
                line[out[(out >= 0) & (out < len(named))]] = -np.inf
            yield _best(scores, depth, named.first)


def _best(scores: Matrix, depth: int, first: int) -> Ranked:
    """The `depth` highest of each line, in any order."""
    chosen = np.argpartition(scores, scores.shape[1] - depth, axis=1)[:, scores.shape[1] - depth :]
    found = np.take_along_axis(scores, chosen, axis=1).astype(np.float64)
    return Ranked(np.where(np.isfinite(found), chosen + first, -1), found)
