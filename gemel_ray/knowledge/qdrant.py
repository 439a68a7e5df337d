"""Where vectors live, in Qdrant: a folder (`EdgeStore`) or a server's collection (`ServerStore`).

The folder is searched by Qdrant's own engine in this process, and by many processes at once. Neither
home settles ties: that, and all checks, are `vectors.Vectors`' part. Only this file imports Qdrant.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from gemel_ray.knowledge.rankings import Ranked, padded
from gemel_ray.knowledge.vectors import Matrix, Points, Without

_PAUSES: Final = (0.2, 0.4, 0.8, 1.6)  # seconds before a silent server is asked again


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

    def nearest(self, name: str, queries: Matrix, without: Without, depth: int, exact: bool) -> Ranked:
        q = self._edge
        requests = [
            q.QueryRequest(
                depth,
                query=q.Query.Nearest(vector, using=name),
                filter=q.Filter(must_not=[q.HasIdCondition(set(map(int, rows)))]) if len(rows) else None,
                params=q.SearchParams(exact=exact),
            )
            for vector, rows in zip(queries.tolist(), without, strict=True)
        ]
        answers = self._shard.query_batch(q.QueryBatchRequest(requests))
        return padded([[(int(point.id), point.score) for point in answer] for answer in answers])


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

    def nearest(self, name: str, queries: Matrix, without: Without, depth: int, exact: bool) -> Ranked:
        m = self._models
        requests = [
            m.QueryRequest(
                query=vector,
                using=name,
                limit=depth,
                filter=m.Filter(must_not=[m.HasIdCondition(has_id=sorted(map(int, rows)))])
                if len(rows)
                else None,
                params=None if self._imitated else m.SearchParams(exact=exact),  # the imitation warns of it
            )
            for vector, rows in zip(queries.tolist(), without, strict=True)
        ]
        answers = self._ask(self._client.query_batch_points, requests=requests)
        return padded([[(int(point.id), point.score) for point in answer.points] for answer in answers])

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
