"""The vectors of the demonstration bank: which rows are nearest to a mention or to an image.

A point's id is its row in the bank; it has a vector under each name ("mention", "name", "image") or lacks it.
Ties are settled here, never by an engine, so that both homes of `qdrant.py` give the same answers. Knows
nothing of Qdrant, of encoders, prompts or what a row holds. Open the vectors in the process that uses
them: they cannot be pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]
Points = dict[int, dict[str, list[float]]]  # row -> name -> vector
Question = tuple[list[float], set[int]]  # vector, rows never to be returned
Answer = list[tuple[int, float]]  # row and score, a tie in any order
Without = Sequence[Sequence[int]]
Bonus = Callable[[int, npt.NDArray[np.int64]], Matrix]  # number of a query, rows -> float32 [rows]
T = TypeVar("T")

TIE: Final = 1e-6  # the scores of equal vectors differ by less, those of others seldom do
_MOST_EQUALS: Final = 1_000
_DEEP: Final = 100  # rows of a list that something is still done with
_QUERIES, _POINTS = 128, 256  # in one request


class Hits(NamedTuple):
    """Rows of the bank, best first; equal vectors have exactly equal scores and rise by row."""

    rows: npt.NDArray[np.int64]  # [m]
    scores: Matrix  # cosines (of `fuse`: votes), float32 [m]


class VectorStore(Protocol):
    """A home of vectors. It promises nothing about ties."""

    widths: dict[str, int]  # of the vectors, by name

    def count(self) -> int: ...
    def upsert(self, points: Points) -> None: ...
    def finish(self, graph: bool) -> None: ...
    def close(self) -> None: ...
    def nearest(self, name: str, questions: list[Question], depth: int, exact: bool) -> list[Answer]: ...


@dataclass(frozen=True)
class Vectors:
    """What is asked of either home. In every matrix a row of NaN throughout stands for "none".

    multiplicity  {name: largest number of rows with equal vectors}, 1 where not given, at most 1,000: so
                  many candidates more are asked for that a tie is seen whole. If it is too small, the
                  engine chooses inside the tie that the limit cuts.
    exact_below   from so many points on a graph (HNSW) answers: approximately, less well the more rows
                  are equal, and not the same at both homes. An exact answer from 100,000 x 384 takes
                  5 ms on two cores, so the number may well be larger.
    joined        {name: another, of the same width}: who asks for the one is given the nearest of both
    """

    store: VectorStore
    multiplicity: Mapping[str, int] = field(default_factory=dict)
    exact_below: int = 200_000
    joined: Mapping[str, str] = field(default_factory=dict)

    def count(self) -> int:
        """Number of points, those without any vector included."""
        return self.store.count()

    def add(self, rows: npt.ArrayLike, vectors: Mapping[str, Matrix]) -> None:
        """Add points, batch by batch: `rows` int [n], under each name float32 [n, width].

        A row that comes again is replaced. ValueError: unknown name, wrong shape, NaN, a row twice.
        """
        points: Points = {row: {} for row in np.asarray(rows).tolist()}
        for name, matrix in vectors.items():
            there = self._there(name, matrix)
            if len(matrix) != len(points):
                raise ValueError(f"{len(matrix)} {name} vectors for {len(points)} different rows")
            for row, vector in zip(np.asarray(rows)[there].tolist(), matrix[there].tolist(), strict=True):
                points[row][name] = vector
        for chunk in _chunks(list(points), _POINTS):
            self.store.upsert({row: points[row] for row in chunk})

    def finish(self) -> None:
        """Make what was added lasting; build the graph, which takes minutes, only if it will be asked."""
        self.store.finish(graph=self.count() >= self.exact_below)

    def close(self) -> None:
        """Let go of the folder or the connection."""
        self.store.close()

    def search(
        self, name: str, queries: Matrix, limit: int, without: Without = (), bonus: Bonus | None = None
    ) -> list[Hits]:
        """The `limit` rows nearest to each of `queries`, float32 [n, width]; nothing is near to none.

        `without[i]` are rows never to be returned for query i; nothing given, nothing left out. `bonus` is
        added to the scores of the nearest 100 before they are ranked.
        ValueError: unknown name, wrong width or length. ConnectionError: the server does not answer.
        """
        found = self._search(name, queries, limit, without, bonus)
        return [Hits(hits.rows[:limit], hits.scores[:limit]) for hits in found]

    def search_fused(
        self,
        queries: Mapping[str, Matrix],
        limit: int,
        without: Without = (),
        weights: Mapping[str, float] | None = None,
        bonus: Mapping[str, Bonus] | None = None,
    ) -> list[Hits]:
        """The `limit` rows that the named queries, each float32 [n, width], agree on: `fuse`.

        A name under which a query has none gives it no vote. A name's weight is 1 unless given; one of
        weight 0 is not asked. The lists are ten times the limit deep, at least 100. Errors as in `search`.
        """
        count = max(map(len, queries.values()), default=0)
        depth, given, found = max(10 * limit, _DEEP), weights or {}, []
        for name, matrix in queries.items():
            if len(matrix) != count:
                raise ValueError(f"{len(matrix)} queries under {name}, but {count} under another name")
            if (weight := given.get(name, 1.0)) > 0:
                extra = (bonus or {}).get(name)
                found.append((self._search(name, matrix, depth, without, extra), weight))
        return [fuse([(hits[i], weight) for hits, weight in found], limit) for i in range(count)]

    def _search(
        self, name: str, queries: Matrix, limit: int, without: Without, bonus: Bonus | None
    ) -> list[Hits]:
        """As `search`, but the tie that the limit would cut is kept whole."""
        depth = max(limit, _DEEP) if bonus else limit
        found = self._search_one(name, queries, depth, without)
        if (other := self.joined.get(name)) is not None and other in self.store.widths:
            others = self._search_one(other, queries, depth, without)
            found = [_levelled([*_answer(a), *_answer(b)], depth) for a, b in zip(found, others, strict=True)]
        if bonus is None:
            return found
        extra = (Hits(h.rows, h.scores + bonus(i, h.rows)) for i, h in enumerate(found))
        return [_levelled(_answer(hits), limit) for hits in extra]

    def _search_one(self, name: str, queries: Matrix, limit: int, without: Without) -> list[Hits]:
        asked = self._there(name, queries)
        if len(without) not in (0, len(queries)):
            raise ValueError(f"{len(queries)} queries, but {len(without)} lists of rows to leave out")
        found = [_levelled([], limit)] * len(queries)
        exact = self.count() < self.exact_below
        depth = limit + min(self.multiplicity.get(name, 1), _MOST_EQUALS)
        for chunk in _chunks(asked, _QUERIES):
            questions = [
                (queries[i].tolist(), set(map(int, without[i] if len(without) else ()))) for i in chunk
            ]
            answers = self.store.nearest(name, questions, depth, exact)
            for i, answer in zip(chunk, answers, strict=True):
                found[i] = _levelled(answer, limit)
        return found

    def _there(self, name: str, matrix: Matrix) -> list[int]:
        """Numbers of the rows that are not none; ValueError for what no engine could make sense of."""
        if (width := self.store.widths.get(name)) is None:
            raise ValueError(
                f"no vector is named {name!r}; there are: {', '.join(sorted(self.store.widths))}"
            )
        if matrix.ndim != 2 or matrix.shape[1] != width:
            raise ValueError(f"{name} vectors are {width} wide; these have the shape {matrix.shape}")
        there: list[int] = np.flatnonzero(~np.isnan(matrix).all(axis=1)).tolist()
        if not np.isfinite(matrix[there]).all():
            raise ValueError(f"a {name} vector holds NaN or infinity")
        return there


def fuse(lists: Sequence[tuple[Hits, float]], limit: int, k: int = 60) -> Hits:
    """Weighted reciprocal rank fusion: each (hits, weight w) gives a row of rank r the vote w / (k + r).

    Rows with equal scores share a rank (1, 1, 1, 2, ...), and a row that a list does not hold stands
    behind its last one: a list that is cut, or full of ties ("the company"), must not outvote the others
    by being short. An empty list has no vote. Best first, equal ones by row. Qdrant's own Rrf ranks by
    position and counts an absent row as nothing: of 40 rows with the same mention, the one that was
    inserted first gets 1/60 and the last 1/99, and that chance outvotes whatever the image says.
    """
    rows, which = np.unique(np.concatenate([[], *(hits.rows for hits, _ in lists)]), return_inverse=True)
    ranks = [np.unique(-hits.scores, return_inverse=True)[1] + 1 for hits, _ in lists]
    absent = [
        w / (k + rank.max() + 1) if len(rank) else 0.0 for (_, w), rank in zip(lists, ranks, strict=True)
    ]
    votes = [w / (k + rank) - a for (_, w), rank, a in zip(lists, ranks, absent, strict=True)]
    fused = sum(absent) + np.bincount(which, np.concatenate([[], *votes]), len(rows))
    best = np.lexsort((rows, -fused.round(12)))[:limit]  # the last bits depend on the order of the lists
    return Hits(rows[best].astype(np.int64), fused[best].astype(np.float32))


def _answer(hits: Hits) -> Answer:
    return list(zip(hits.rows.tolist(), hits.scores.tolist(), strict=True))


def _levelled(answer: Answer, limit: int) -> Hits:
    """The answer in order, the scores of a tie made equal, ending with the tie that holds place `limit`.

    A gap ends a tie. Rounding would not do: now and then a tie lies across a rounding border, and there the
    last bit of a score, which equal vectors need not share (numpy's do not), would part it.
    """
    rows = np.array([row for row, _ in answer], dtype=np.int64)
    scores = np.array([score for _, score in answer], dtype=np.float64)
    falling = np.argsort(-scores)
    rows, scores = rows[falling], scores[falling]
    opens = np.diff(scores, prepend=np.inf) < -TIE
    tie = np.cumsum(opens) - 1
    size = np.searchsorted(tie, tie[limit - 1], side="right") if 0 < limit < len(tie) else len(tie)
    order = np.lexsort((rows, tie))[:size]
    return Hits(rows[order], scores[opens][tie[order]].astype(np.float32))


def _chunks(items: list[T], size: int) -> Iterator[list[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
