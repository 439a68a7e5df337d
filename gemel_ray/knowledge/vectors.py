"""The vectors of the demonstration bank: which rows are nearest to a mention or to an image.

A point's id is its row in the bank; it has a vector under each name ("mention", "name", "image") or lacks it.
Ties are settled here, never by an engine, so that all stores give the same answers: those of `qdrant.py`, and
the plain matrices below. Knows nothing of Qdrant, encoders, prompts or what a row means. Open the
vectors in the process that uses them: they cannot be pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from gemel_ray.errors import Mistake
from gemel_ray.knowledge.bank import Bank
from gemel_ray.models.encoders import unit

# Ranked rows of many queries at once: ties settled, lists joined and fused, whole matrices at a time.


Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]

TIE: Final = 1e-6  # scores of equal vectors differ by less, others rarely do
_FIRST: Final = 60  # added to ranks, so that the first of one list does not outvote all others


class Ranked(NamedTuple):
    """One query per line. Lines are padded with row -1 of score minus infinity, after `settle_ties` at their
    ends."""

    rows: Rows  # [queries, n]
    scores: Scores  # [queries, n]


def empty(queries: int, width: int) -> Ranked:
    """Lines without rows."""
    return Ranked(np.full((queries, width), -1, np.int64), np.full((queries, width), -np.inf))


def padded(answers: Sequence[Sequence[tuple[int, float]]]) -> Ranked:
    """Lists of (row, score) as lines."""
    made = empty(len(answers), max(map(len, answers), default=0))
    for i, answer in enumerate(answers):
        made.rows[i, : len(answer)] = [row for row, _ in answer]
        made.scores[i, : len(answer)] = [score for _, score in answer]
    return made


def placed(parts: Sequence[tuple[Sequence[int], Ranked]], queries: int) -> Ranked:
    """The lines of each part at its places among `queries` lines; the others are empty."""
    made = empty(queries, max((lines.rows.shape[1] for _, lines in parts), default=0))
    for places, (rows, scores) in parts:
        made.rows[places, : rows.shape[1]], made.scores[places, : rows.shape[1]] = rows, scores
    return made


def settle_ties(ranked: Ranked, limit: int) -> Ranked:
    """The lines in order, with equal scores and rising rows within a tie; each line ends with the tie at
    place `limit`.

    A gap ends a tie. Rounding would not do: some ties lie across a rounding border, where the last bit of a
    score, which may differ between equal vectors (with numpy it does), would split them.
    """
    falling = np.argsort(-ranked.scores, axis=1)
    rows = np.take_along_axis(ranked.rows, falling, axis=1)
    scores = np.take_along_axis(ranked.scores, falling, axis=1)
    with np.errstate(invalid="ignore"):  # for two absent rows
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


def fused(lists: Sequence[tuple[Ranked, float]], queries: int, limit: int) -> Ranked:
    """Weighted reciprocal rank fusion: for each query, (lines with settled ties, weight w) gives a row of
    rank r the vote w / (60 + r).

    Rows with equal scores share a rank (1, 1, 1, 2, ...), and a row that is not in a list ranks after its
    last one: a list that is cut, or full of ties ("the company"), must not outvote the others by being short.
    An empty list has no vote. Best first, equal ones by row. Qdrant's Rrf ranks by position and ignores an
    absent row: of 40 rows with the same mention, the first inserted gets 1/60 and the last 1/99, and that
    chance outvotes the image.
    """
    base, parts = np.zeros(queries), [(np.empty(0, np.int64),) * 2 + (np.empty(0),)]
    for ranked, weight in lists:
        there = np.isfinite(ranked.scores)
        with np.errstate(invalid="ignore"):
            rank = np.cumsum(np.diff(ranked.scores, axis=1, prepend=np.inf) < 0, axis=1)
        last = np.where(there, rank, 0).max(axis=1, initial=0)
        absent = np.where(last, weight / (_FIRST + last + 1), 0.0)
        base += absent
        query, _ = at = np.nonzero(there)
        parts.append((query, ranked.rows[at], weight / (_FIRST + rank[at]) - absent[query]))
    query, row, votes = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    width = int(row.max(initial=0)) + 1
    keys, which = np.unique(query * width + row, return_inverse=True)
    query, row = np.divmod(keys, width)
    votes = base[query] + np.bincount(which, votes, len(keys))
    best = np.lexsort((row, -votes.round(12), query))  # the last bits depend on the order of the lists
    query, row, votes = query[best], row[best], votes[best]
    place = np.arange(len(query)) - np.searchsorted(query, query)
    kept = place < limit
    made = empty(queries, min(limit, int(place.max(initial=-1)) + 1))
    made.rows[query[kept], place[kept]], made.scores[query[kept], place[kept]] = row[kept], votes[kept]
    return made


Matrix = npt.NDArray[np.float32]
Points = dict[int, dict[str, list[float]]]  # row -> name -> vector
Without = Sequence[Sequence[int]]
Bonus = Callable[[int, npt.NDArray[np.int64]], Matrix]  # number of a query, rows -> float32 [rows]
T = TypeVar("T")

_MOST_EQUALS: Final = 1_000
_DEEP: Final = 100  # rows of a list that are still processed
QUERIES: Final = 128  # of a store at once, at most
_POINTS: Final = 256  # per request


class Hits(NamedTuple):
    """Rows of the bank, best first; equal vectors have exactly equal scores and rise by row."""

    rows: npt.NDArray[np.int64]  # [m]
    scores: Matrix  # cosines (of a fused search: votes), float32 [m]


class VectorStore(Protocol):
    """A store of vectors. It guarantees nothing about ties or the order of its results."""

    widths: dict[str, int]  # of the vectors, by name
    at_once: int  # queries

    def count(self) -> int: ...
    def upsert(self, points: Points) -> None: ...
    def finish(self, graph: bool) -> None: ...
    def close(self) -> None: ...
    def nearest(self, name: str, queries: Matrix, without: Without, depth: int, exact: bool) -> Ranked:
        """For each query, the `depth` nearest rows, without those in `without`."""


@dataclass(frozen=True)
class Vectors:
    """Searches any store. In every matrix a row of NaN means "none".

    multiplicity  {name: largest number of rows with equal vectors}, by default 1, at most 1,000: that many
                  more candidates are requested, so that ties are complete. If it is too small, the
                  engine chooses inside the tie that the limit cuts.
    exact_below   from this number of points a graph (HNSW) is searched: approximately, worse the more rows
                  are equal, and not the same in both stores. An exact search of 100,000 x 384 takes a
                  core a millisecond, so the number may well be larger.
    joined        {name: another, of the same width}: a search by the one finds the nearest of both
    """

    store: VectorStore
    multiplicity: Mapping[str, int] = field(default_factory=dict)
    exact_below: int = 200_000
    joined: Mapping[str, str] = field(default_factory=dict)

    def count(self) -> int:
        """Number of points, including those without a vector."""
        return self.store.count()

    def add(self, rows: npt.ArrayLike, vectors: Mapping[str, Matrix]) -> None:
        """Add points, batch by batch: `rows` int [n], under each name float32 [n, width].

        A row that is added again is replaced. Raises ValueError for an unknown name, a wrong shape, NaN or a
        row that occurs twice.
        """
        points: Points = {row: {} for row in np.asarray(rows).tolist()}
        for name, matrix in vectors.items():
            there = self._present(name, matrix)
            if len(matrix) != len(points):
                raise Mistake(f"{len(matrix)} {name} vectors for {len(points)} different rows")
            for row, vector in zip(np.asarray(rows)[there].tolist(), matrix[there].tolist(), strict=True):
                points[row][name] = vector
        for chunk in _chunks(list(points), _POINTS):
            self.store.upsert({row: points[row] for row in chunk})

    def finish(self) -> None:
        """Make what was added durable; build the graph, which takes minutes, only if it will be used."""
        self.store.finish(graph=self.count() >= self.exact_below)

    def close(self) -> None:
        """Close the folder or the connection."""
        self.store.close()

    def search(
        self, name: str, queries: Matrix, limit: int, without: Without = (), bonus: Bonus | None = None
    ) -> list[Hits]:
        """The `limit` rows nearest to each of `queries`, float32 [n, width]; none for a row of NaN.

        `without[i]` are rows that are left out for query i. `bonus` is added to the scores of the nearest 100
        before they are ranked. Raises ValueError for an unknown name, a wrong width or length;
        ConnectionError if the server does not answer.
        """
        return _hits(self._search(name, queries, limit, without, bonus), limit)

    def search_fused(
        self,
        queries: Mapping[str, Matrix],
        limit: int,
        without: Without = (),
        weights: Mapping[str, float] | None = None,
        bonus: Mapping[str, Bonus | None] | None = None,
    ) -> list[Hits]:
        """The `limit` rows that the named queries, each float32 [n, width], agree on, by `fused`.

        A name for which a query has no vector gives no vote. A name's weight is 1 unless given; one of weight
        0 is not searched. The lists are ten times the limit deep, at least 100. Raises as `search` does.
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
        """As `search`, but the tie at the limit is complete."""
        depth = max(limit, _DEEP) if bonus else limit
        found = self._search_one(name, queries, depth, without)
        if (other := self.joined.get(name)) is not None and other in self.store.widths:
            more = self._search_one(other, queries, depth, without)
            rows, scores = np.hstack([found.rows, more.rows]), np.hstack([found.scores, more.scores])
            found = settle_ties(Ranked(rows, scores), depth)
        return settle_ties(_with_bonus(found, bonus), limit) if bonus else found

    def _search_one(self, name: str, queries: Matrix, limit: int, without: Without) -> Ranked:
        present = self._present(name, queries)
        if len(without) not in (0, len(queries)):
            raise Mistake(f"{len(queries)} queries, but {len(without)} lists of rows to leave out")
        exact = self.store.count() < self.exact_below
        depth = limit + min(self.multiplicity.get(name, 1), _MOST_EQUALS)
        parts = []
        for chunk in _chunks(present, self.store.at_once):
            out = [without[i] for i in chunk] if len(without) else [()] * len(chunk)
            found = self.store.nearest(name, queries[chunk], out, depth, exact)
            parts.append((chunk, settle_ties(found, limit)))
        return placed(parts, len(queries))

    def _present(self, name: str, matrix: Matrix) -> list[int]:
        """Numbers of the rows that are not none. Raises ValueError for an unknown name or a wrong shape."""
        if (width := self.store.widths.get(name)) is None:
            raise Mistake(f"no vector is named {name!r}; there are: {', '.join(sorted(self.store.widths))}")
        if matrix.ndim != 2 or matrix.shape[1] != width:
            raise Mistake(f"{name} vectors are {width} wide; these have the shape {matrix.shape}")
        there: list[int] = np.flatnonzero(~np.isnan(matrix).all(axis=1)).tolist()
        if not np.isfinite(matrix[there]).all():
            raise Mistake(f"a {name} vector holds NaN or infinity")
        return there


def _hits(ranked: Ranked, limit: int) -> list[Hits]:
    sizes = np.minimum(np.isfinite(ranked.scores).sum(axis=1), limit).tolist()
    scores = ranked.scores.astype(np.float32)
    return [Hits(r[:n], s[:n]) for r, s, n in zip(ranked.rows, scores, sizes, strict=True)]


def _with_bonus(found: Ranked, bonus: Bonus) -> Ranked:
    """The lines with `bonus` added to each row's score."""
    scores = found.scores.copy()
    for i, size in enumerate(np.isfinite(scores).sum(axis=1).tolist()):
        scores[i, :size] += bonus(i, found.rows[i, :size])
    return Ranked(found.rows, scores)


def _chunks(items: list[T], size: int) -> Iterator[list[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


# The bank's vectors, searched by one matrix product for many queries: exact, with 100,000 vectors a
# millisecond per query and core. The bank's files are mapped, so all processes share them.
#
# Qdrant's copy is written from the same matrices; it is searched if a bank is larger than
# `vectors.exact_below` or a server is configured.


_SCORES: Final = 1 << 24  # of queries at once, 64 MiB
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
            self._named["image"] = _Named.of(pictures, 0, bank.image_rows.astype(np.int64))
        self.widths = {name: named.vectors.shape[1] for name, named in self._named.items()}
        self.at_once = max(1, min(QUERIES, _SCORES // max(1, len(bank))))

    def count(self) -> int:
        return self._count

    def upsert(self, points: Points) -> None:
        raise TypeError("the vectors of a bank are read-only")

    def finish(self, graph: bool) -> None:
        """Do nothing: nothing can be added."""

    def close(self) -> None:
        """Do nothing: the files belong to the bank."""

    def nearest(self, name: str, queries: Matrix, without: Without, depth: int, exact: bool) -> Ranked:
        named = self._named[name]
        scores = named.cosines(unit(queries))
        rows = scores.shape[1]
        for line, left_out in zip(scores, without, strict=True):
            out = np.asarray(left_out, np.int64) - named.first
            line[out[(out >= 0) & (out < rows)]] = -np.inf
        worse = max(0, rows - depth)
        best = np.argpartition(scores, worse, axis=1)[:, worse:]
        found = np.take_along_axis(scores, best, axis=1).astype(np.float64)
        return Ranked(np.where(np.isfinite(found), best + named.first, -1), found)
