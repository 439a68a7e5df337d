"""The vectors of the demonstration bank, in Qdrant: which rows are nearest to a mention or to an image.

A point's id is its row in the bank; it has a vector under each name ("mention", "image") or lacks it.
Two homes, the same answers: Qdrant's engine in this process over a folder that many processes search at
once (`EdgeStore`), or a server (`ServerStore`). Ties are settled here, in `Vectors`, never by an engine.
Knows nothing of encoders, prompts or what a row holds. Only this file imports Qdrant. Open the vectors in
the process that uses them: they cannot be pickled.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]
Points = dict[int, dict[str, list[float]]]  # row -> name -> vector
Question = tuple[list[float], set[int]]  # vector, rows never to be returned
Answer = list[tuple[int, float]]  # row and score, a tie in any order
Without = Sequence[Sequence[int]]
T = TypeVar("T")

TIE: Final = 1e-6  # the scores of equal vectors differ by less, those of others seldom do
_MOST_EQUALS: Final = 1_000
_QUERIES, _POINTS = 128, 256  # in one request
_PAUSES: Final = (0.2, 0.4, 0.8, 1.6)  # seconds before a silent server is asked again


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
    """

    store: VectorStore
    multiplicity: Mapping[str, int] = field(default_factory=dict)
    exact_below: int = 50_000

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

    def search(self, name: str, queries: Matrix, limit: int, without: Without = ()) -> list[Hits]:
        """The `limit` rows nearest to each of `queries`, float32 [n, width]; nothing is near to none.

        `without[i]` are rows never to be returned for query i; nothing given, nothing left out.
        ValueError: unknown name, wrong width or length. ConnectionError: the server does not answer.
        """
        found = self._search(name, queries, limit, without)
        return [Hits(hits.rows[:limit], hits.scores[:limit]) for hits in found]

    def search_fused(
        self,
        queries: Mapping[str, Matrix],
        limit: int,
        without: Without = (),
        weights: Mapping[str, float] | None = None,
    ) -> list[Hits]:
        """The `limit` rows that the named queries, each float32 [n, width], agree on: `fuse`.

        A name under which a query has none gives it no vote. A name's weight is 1 unless given; one of
        weight 0 is not asked. The lists are ten times the limit deep, at least 100. Errors as in `search`.
        """
        count = max(map(len, queries.values()), default=0)
        depth, given, found = max(10 * limit, 100), weights or {}, []
        for name, matrix in queries.items():
            if len(matrix) != count:
                raise ValueError(f"{len(matrix)} queries under {name}, but {count} under another name")
            if (weight := given.get(name, 1.0)) > 0:
                found.append((self._search(name, matrix, depth, without), weight))
        return [fuse([(hits[i], weight) for hits, weight in found], limit) for i in range(count)]

    def _search(self, name: str, queries: Matrix, limit: int, without: Without) -> list[Hits]:
        """As `search`, but the tie that the limit would cut is kept whole."""
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

    Rows with equal scores share a rank (1, 1, 1, 2, ...). Best first, equal ones by row. Qdrant's own Rrf
    ranks by position instead: of 40 rows with the same mention, the one that was inserted first gets 1/60
    and the last 1/99, and that chance outvotes whatever the image says.
    """
    rows, which = np.unique(np.concatenate([[], *(hits.rows for hits, _ in lists)]), return_inverse=True)
    ranks = [np.unique(-hits.scores, return_inverse=True)[1] + 1 for hits, _ in lists]
    votes = [weight / (k + rank) for (_, weight), rank in zip(lists, ranks, strict=True)]
    fused = np.bincount(which, np.concatenate([[], *votes]), len(rows))
    best = np.lexsort((rows, -fused.round(12)))[:limit]  # the last bits depend on the order of the lists
    return Hits(rows[best].astype(np.int64), fused[best].astype(np.float32))


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


@contextmanager
def _plainly(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the engine has no class of its own
        raise OSError(f"the vectors in {folder} (it must be writable): {error}") from error


class EdgeStore:
    """A folder, written by one process, then searched by many.

    The engine opens its files for writing even to search, and rewrites small ones with what they held:
    the folder must be writable, and not be judged by its files' times.
    """

    def __init__(self, shard: Any, widths: Mapping[str, int]) -> None:
        import qdrant_edge

        self._edge, self._shard, self.widths = qdrant_edge, shard, dict(widths)

    @classmethod
    def create(cls, folder: Path, widths: Mapping[str, int]) -> EdgeStore:
        """An empty store. OSError if the folder holds vectors already or cannot be written."""
        import qdrant_edge as q

        params = {name: q.EdgeVectorParams(width, q.Distance.Cosine) for name, width in widths.items()}
        config = q.EdgeConfig(params, wal_enabled=False)  # that log would lock the folder to one process
        folder.mkdir(parents=True, exist_ok=True)
        with _plainly(folder):
            return cls(q.EdgeShard.create(str(folder), config), widths)

    @classmethod
    def open(cls, folder: Path) -> EdgeStore:
        """The finished store. OSError if there is none or its files cannot be opened for writing."""
        import qdrant_edge as q

        with _plainly(folder):
            shard = q.EdgeShard.load(str(folder))
        vectors = json.loads((folder / "edge_config.json").read_text())["vectors"]
        return cls(shard, {name: vector["size"] for name, vector in vectors.items()})

    def count(self) -> int:
        return int(self._shard.count(self._edge.CountRequest(exact=True)))

    def upsert(self, points: Points) -> None:
        listed = [self._edge.Point(row, dict(vectors)) for row, vectors in points.items()]
        self._shard.update(self._edge.UpdateOperation.upsert_points(listed))

    def finish(self, graph: bool) -> None:
        if graph:
            self._shard.optimize()
        self._shard.flush()

    def close(self) -> None:
        self._shard.close()

    def nearest(self, name: str, questions: list[Question], depth: int, exact: bool) -> list[Answer]:
        q = self._edge
        requests = [
            q.QueryRequest(
                depth,
                query=q.Query.Nearest(vector, using=name),
                filter=q.Filter(must_not=[q.HasIdCondition(set(rows))]) if rows else None,
                params=q.SearchParams(exact=exact),
            )
            for vector, rows in questions
        ]
        answers = self._shard.query_batch(q.QueryBatchRequest(requests))
        return [[(int(point.id), point.score) for point in answer] for answer in answers]


class ServerStore:
    """A collection of a Qdrant server, "http://host:6333/collection"; its key is in QDRANT_API_KEY.

    For tests also ":memory:" or a folder: qdrant-client's imitation of a server, in this process.
    """

    def __init__(self, address: str) -> None:
        from qdrant_client import QdrantClient, models

        self.address, self._models, self.widths = address, models, dict[str, int]()
        self._imitated = "://" not in address
        if self._imitated:
            where = {"location": address} if address == ":memory:" else {"path": address}
            self._client, self._collection = QdrantClient(**where), "vectors"
            return
        host, _, self._collection = address.rpartition("/")
        if host.endswith("/") or not self._collection:
            raise ValueError(f"{address} must end with a collection: http://host:6333/collection")
        key = os.environ.get("QDRANT_API_KEY")
        self._client = QdrantClient(url=host, api_key=key, timeout=60, check_compatibility=False)

    @classmethod
    def create(cls, address: str, widths: Mapping[str, int]) -> ServerStore:
        """An empty collection. FileExistsError if it is there, ConnectionError if no server answers."""
        self = cls(address)
        if self._ask(self._client.collection_exists):
            raise FileExistsError(f"{address} holds vectors already")
        m, self.widths = self._models, dict(widths)
        params = {name: m.VectorParams(size=w, distance=m.Distance.COSINE) for name, w in widths.items()}
        later = m.OptimizersConfigDiff(indexing_threshold=0)  # no graph while points still come
        self._ask(self._client.create_collection, vectors_config=params, optimizers_config=later)
        return self

    @classmethod
    def open(cls, address: str) -> ServerStore:
        """A finished collection. FileNotFoundError if it is not there, ConnectionError as above."""
        self = cls(address)
        if not self._ask(self._client.collection_exists):
            raise FileNotFoundError(f"no vectors at {address}")
        params = self._ask(self._client.get_collection).config.params.vectors
        self.widths = {name: vector.size for name, vector in params.items()}
        return self

    def count(self) -> int:
        return int(self._ask(self._client.count, exact=True).count)

    def upsert(self, points: Points) -> None:
        listed = [self._models.PointStruct(id=row, vector=dict(vectors)) for row, vectors in points.items()]
        self._ask(self._client.upsert, points=listed)

    def finish(self, graph: bool) -> None:
        if not graph:
            return
        m = self._models
        now = m.OptimizersConfigDiff(indexing_threshold=10_000)  # kilobytes in a segment
        self._ask(self._client.update_collection, optimizers_config=now)
        greens = 0
        while greens < 2:  # the first may date from before the change
            status = self._ask(self._client.get_collection).status
            if status == m.CollectionStatus.RED:
                raise RuntimeError(f"the server cannot index {self.address}")
            greens = greens + 1 if status == m.CollectionStatus.GREEN else 0
            time.sleep(0 if self._imitated else 1)

    def close(self) -> None:
        self._client.close()

    def nearest(self, name: str, questions: list[Question], depth: int, exact: bool) -> list[Answer]:
        m = self._models
        requests = [
            m.QueryRequest(
                query=vector,
                using=name,
                limit=depth,
                filter=m.Filter(must_not=[m.HasIdCondition(has_id=sorted(rows))]) if rows else None,
                params=None if self._imitated else m.SearchParams(exact=exact),  # the imitation warns of it
            )
            for vector, rows in questions
        ]
        answers = self._ask(self._client.query_batch_points, requests=requests)
        return [[(int(point.id), point.score) for point in answer.points] for answer in answers]

    def _ask(self, call: Callable[..., Any], **arguments: Any) -> Any:
        """`call` on the collection, again after a pause while nobody answers or the server is busy."""
        from qdrant_client.common.client_exceptions import QdrantException
        from qdrant_client.http.exceptions import ApiException

        reason: Exception
        for pause in (0.0, *_PAUSES):
            time.sleep(pause)
            try:
                return call(self._collection, **arguments)
            except (ApiException, QdrantException) as error:
                status = getattr(error, "status_code", None) or 503
                if status < 500 and status != 429:
                    raise RuntimeError(f"{self.address} refuses: {error}") from error
                reason = error
        raise ConnectionError(f"no Qdrant server answers at {self.address}: {reason}") from reason
