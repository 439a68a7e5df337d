"""The vectors of the demonstration bank: which rows are nearest to a mention or to an image.

A point's id is its row in the bank; it has a vector under each name ("mention", "name", "image") or lacks it.
Ties are settled here, never by an engine, so that all homes give the same answers: those of
`qdrant.py`, and the plain matrices of `matrices.py`. Knows nothing of Qdrant, of encoders, prompts or what
a row holds. Open the vectors in the process that uses them: they cannot be pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from gemel_ray.errors import Mistake

# Ranked rows of many queries at once: ties settled, lists joined and fused, whole matrices at a time.


Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]

TIE: Final = 1e-6  # the scores of equal vectors differ by less, those of others seldom do


class Ranked(NamedTuple):
    """One query a line. Lines are filled up with row -1 of score minus infinity, at their ends once they are
    `levelled`."""

    rows: Rows  # [queries, n]
    scores: Scores  # [queries, n]


def nothing(queries: int, width: int) -> Ranked:
    """Lines without a row."""
    return Ranked(np.full((queries, width), -1, np.int64), np.full((queries, width), -np.inf))


def padded(answers: Sequence[Sequence[tuple[int, float]]]) -> Ranked:
    """Of lists of (row, score)."""
    made = nothing(len(answers), max(map(len, answers), default=0))
    for i, answer in enumerate(answers):
        made.rows[i, : len(answer)] = [row for row, _ in answer]
        made.scores[i, : len(answer)] = [score for _, score in answer]
    return made


def beside(one: Ranked, other: Ranked) -> Ranked:
    """Both lists of each query as one; not in order."""
    return Ranked(np.hstack([one.rows, other.rows]), np.hstack([one.scores, other.scores]))


def below(parts: Sequence[Ranked]) -> Ranked:
    """The queries of all parts, one part after another."""
    made, at = nothing(sum(len(p.rows) for p in parts), max(p.rows.shape[1] for p in parts)), 0
    for part in parts:
        count, width = part.rows.shape
        made.rows[at : at + count, :width], made.scores[at : at + count, :width] = part
        at += count
    return made


def spread(ranked: Ranked, asked: Sequence[int], queries: int) -> Ranked:
    """The lines as those of the queries `asked`, of so many; the others have none."""
    if len(asked) == queries:
        return ranked
    made = nothing(queries, ranked.rows.shape[1])
    made.rows[asked], made.scores[asked] = ranked
    return made


def levelled(ranked: Ranked, limit: int) -> Ranked:
    """In order, the scores of a tie made equal and its rows rising, each line ending with the tie that holds
    place `limit`.

    A gap ends a tie. Rounding would not do: now and then a tie lies across a rounding border, and there the
    last bit of a score, which equal vectors need not share (numpy's do not), would part it.
    """
    falling = np.argsort(-ranked.scores, axis=1)
    rows = np.take_along_axis(ranked.rows, falling, axis=1)
    scores = np.take_along_axis(ranked.scores, falling, axis=1)
    with np.errstate(invalid="ignore"):  # of two that are not there
        opens = np.diff(scores, axis=1, prepend=np.inf) < -TIE
    tie = np.cumsum(opens, axis=1)
    kept = np.isfinite(scores)
    if 0 < limit < scores.shape[1]:
        kept &= tie <= tie[:, limit - 1 : limit]
    first = np.maximum.accumulate(np.where(opens, np.arange(scores.shape[1]), 0), axis=1)
    level = np.where(kept, np.take_along_axis(scores, first, axis=1), -np.inf)
    order = np.lexsort((rows, tie), axis=-1)
    size = int(kept.sum(axis=1).max(initial=0))
    rows = np.where(kept, np.take_along_axis(rows, order, axis=1), -1)
    return Ranked(rows[:, :size], level[:, :size])


def fused(lists: Sequence[tuple[Ranked, float]], queries: int, limit: int, k: int = 60) -> Ranked:
    """Weighted reciprocal rank fusion: of each query, (levelled lines, weight w) gives a row of rank r the
    vote w / (k + r).

    Rows with equal scores share a rank (1, 1, 1, 2, ...), and a row that a list does not hold stands
    behind its last one: a list that is cut, or full of ties ("the company"), must not outvote the others
    by being short. An empty list has no vote. Best first, equal ones by row. Qdrant's own Rrf ranks by
    position and counts an absent row as nothing: of 40 rows with the same mention, the one that was
    inserted first gets 1/60 and the last 1/99, and that chance outvotes whatever the image says.
    """
    base, parts = np.zeros(queries), [(np.empty(0, np.int64),) * 2 + (np.empty(0),)]
    for ranked, weight in lists:
        there = np.isfinite(ranked.scores)
        with np.errstate(invalid="ignore"):
            rank = np.cumsum(np.diff(ranked.scores, axis=1, prepend=np.inf) < 0, axis=1)
        last = np.where(there, rank, 0).max(axis=1, initial=0)
        absent = np.where(last, weight / (k + last + 1), 0.0)
        base += absent
        query, _ = at = np.nonzero(there)
        parts.append((query, ranked.rows[at], weight / (k + rank[at]) - absent[query]))
    query, row, votes = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    width = int(row.max(initial=0)) + 1
    keys, which = np.unique(query * width + row, return_inverse=True)
    query, row = np.divmod(keys, width)
    votes = base[query] + np.bincount(which, votes, len(keys))
    best = np.lexsort((row, -votes.round(12), query))  # the last bits depend on the order of the lists
    query, row, votes = query[best], row[best], votes[best]
    place = np.arange(len(query)) - np.searchsorted(query, query)
    kept = place < limit
    made = nothing(queries, min(limit, int(place.max(initial=-1)) + 1))
    made.rows[query[kept], place[kept]], made.scores[query[kept], place[kept]] = row[kept], votes[kept]
    return made


Matrix = npt.NDArray[np.float32]
Points = dict[int, dict[str, list[float]]]  # row -> name -> vector
Without = Sequence[Sequence[int]]
Bonus = Callable[[int, npt.NDArray[np.int64]], Matrix]  # number of a query, rows -> float32 [rows]
T = TypeVar("T")

_MOST_EQUALS: Final = 1_000
_DEEP: Final = 100  # rows of a list that something is still done with
_QUERIES, _POINTS = 128, 256  # in one request


class Hits(NamedTuple):
    """Rows of the bank, best first; equal vectors have exactly equal scores and rise by row."""

    rows: npt.NDArray[np.int64]  # [m]
    scores: Matrix  # cosines (of `fuse`: votes), float32 [m]


class VectorStore(Protocol):
    """A home of vectors. It promises nothing about ties, nor about the order of what it answers."""

    widths: dict[str, int]  # of the vectors, by name

    def count(self) -> int: ...
    def upsert(self, points: Points) -> None: ...
    def finish(self, graph: bool) -> None: ...
    def close(self) -> None: ...
    def nearest(self, name: str, queries: Matrix, without: Without, depth: int, exact: bool) -> Ranked:
        """Of each query, the `depth` nearest rows that it is not `without`."""


@dataclass(frozen=True)
class Vectors:
    """What is asked of any home. In every matrix a row of NaN throughout stands for "none".

    multiplicity  {name: largest number of rows with equal vectors}, 1 where not given, at most 1,000: so
                  many candidates more are asked for that a tie is seen whole. If it is too small, the
                  engine chooses inside the tie that the limit cuts.
    exact_below   from so many points on a graph (HNSW) answers: approximately, less well the more rows
                  are equal, and not the same at both homes. An exact answer from 100,000 x 384 takes
                  a core a millisecond, so the number may well be larger.
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
                raise Mistake(f"{len(matrix)} {name} vectors for {len(points)} different rows")
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
        return _hits(self._search(name, queries, limit, without, bonus), limit)

    def search_fused(
        self,
        queries: Mapping[str, Matrix],
        limit: int,
        without: Without = (),
        weights: Mapping[str, float] | None = None,
        bonus: Mapping[str, Bonus] | None = None,
    ) -> list[Hits]:
        """The `limit` rows that the named queries, each float32 [n, width], agree on: `rankings.fused`.

        A name under which a query has none gives it no vote. A name's weight is 1 unless given; one of
        weight 0 is not asked. The lists are ten times the limit deep, at least 100. Errors as in `search`.
        """
        count = max(map(len, queries.values()), default=0)
        depth, given, found = max(10 * limit, _DEEP), weights or {}, []
        for name, matrix in queries.items():
            if len(matrix) != count:
                raise Mistake(f"{len(matrix)} queries under {name}, but {count} under another name")
            if (weight := given.get(name, 1.0)) > 0:
                extra = (bonus or {}).get(name)
                found.append((self._search(name, matrix, depth, without, extra), weight))
        return _hits(fused(found, count, limit), limit)

    def _search(
        self, name: str, queries: Matrix, limit: int, without: Without, bonus: Bonus | None
    ) -> Ranked:
        """As `search`, but the tie that the limit would cut is kept whole."""
        depth = max(limit, _DEEP) if bonus else limit
        found = self._search_one(name, queries, depth, without)
        if (other := self.joined.get(name)) is not None and other in self.store.widths:
            found = levelled(beside(found, self._search_one(other, queries, depth, without)), depth)
        return levelled(_raised(found, bonus), limit) if bonus else found

    def _search_one(self, name: str, queries: Matrix, limit: int, without: Without) -> Ranked:
        asked = self._there(name, queries)
        if len(without) not in (0, len(queries)):
            raise Mistake(f"{len(queries)} queries, but {len(without)} lists of rows to leave out")
        exact = self.count() < self.exact_below
        depth = limit + min(self.multiplicity.get(name, 1), _MOST_EQUALS)
        parts = [nothing(0, 0)]
        for chunk in _chunks(asked, _QUERIES):
            out = [without[i] for i in chunk] if len(without) else [()] * len(chunk)
            parts.append(levelled(self.store.nearest(name, queries[chunk], out, depth, exact), limit))
        return spread(below(parts), asked, len(queries))

    def _there(self, name: str, matrix: Matrix) -> list[int]:
        """Numbers of the rows that are not none; ValueError for what no engine could make sense of."""
        if (width := self.store.widths.get(name)) is None:
            raise Mistake(f"no vector is named {name!r}; there are: {', '.join(sorted(self.store.widths))}")
        if matrix.ndim != 2 or matrix.shape[1] != width:
            raise Mistake(f"{name} vectors are {width} wide; these have the shape {matrix.shape}")
        there: list[int] = np.flatnonzero(~np.isnan(matrix).all(axis=1)).tolist()
        if not np.isfinite(matrix[there]).all():
            raise Mistake(f"a {name} vector holds NaN or infinity")
        return there


def fuse(lists: Sequence[tuple[Hits, float]], limit: int, k: int = 60) -> Hits:
    """What `rankings.fused` makes of one query's (hits, weight)."""
    ranked = [(Ranked(hits.rows[None], hits.scores[None].astype(np.float64)), w) for hits, w in lists]
    (found,) = _hits(fused(ranked, 1, limit, k), limit)
    return found


def _hits(ranked: Ranked, limit: int) -> list[Hits]:
    sizes = np.minimum(np.isfinite(ranked.scores).sum(axis=1), limit).tolist()
    scores = ranked.scores.astype(np.float32)
    return [Hits(r[:n], s[:n]) for r, s, n in zip(ranked.rows, scores, sizes, strict=True)]


def _raised(found: Ranked, bonus: Bonus) -> Ranked:
    """With what `bonus` adds to each row's score."""
    scores = found.scores.copy()
    for i, size in enumerate(np.isfinite(scores).sum(axis=1).tolist()):
        scores[i, :size] += bonus(i, found.rows[i, :size])
    return Ranked(found.rows, scores)


def _chunks(items: list[T], size: int) -> Iterator[list[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
