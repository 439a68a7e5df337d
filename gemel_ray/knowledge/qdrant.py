"""Where vectors live, in Qdrant: a folder (`EdgeStore`) or a server's collection (`ServerStore`).

The folder is searched by Qdrant's own engine in this process, and by many processes at once. Neither
home settles ties: that, and all checks, are `vectors.Vectors`' part. Only this file imports qdrant_edge.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gemel_ray.knowledge import collection
from gemel_ray.knowledge.rankings import Ranked, padded
from gemel_ray.knowledge.server import Refused, Server
from gemel_ray.knowledge.vectors import Matrix, Points, Without


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
    """A collection of a Qdrant server, which is closed with it."""

    def __init__(self, server: Server, name: str, widths: Mapping[str, int]) -> None:
        self.server, self.name, self.widths = server, name, dict(widths)

    @classmethod
    def create(cls, server: Server, name: str, widths: Mapping[str, int]) -> ServerStore:
        """An empty collection. Errors as of Server.ask."""
        collection.create(server, name, dict(widths))
        return cls(server, name, widths)

    @classmethod
    def open(cls, server: Server, name: str) -> ServerStore:
        """A finished collection. FileNotFoundError if it is not there, other errors as of Server.ask."""
        if not server.has(name):
            raise FileNotFoundError(f"the Qdrant server at {server.host} has no collection {name}")
        params = server.ask(server.client.get_collection, name).config.params.vectors
        return cls(server, name, {vector: of.size for vector, of in params.items()})

    def count(self) -> int:
        return int(self.server.ask(self.server.client.count, self.name, exact=True).count)

    def upsert(self, points: Points) -> None:
        m = self.server.models
        listed = [m.PointStruct(id=row, vector=dict(vectors)) for row, vectors in points.items()]
        self.server.ask(self.server.client.upsert, self.name, points=listed)

    def finish(self, graph: bool) -> None:
        if graph:
            self._index()
        collection.complete(self.server, self.name)

    def _index(self) -> None:
        m, client = self.server.models, self.server.client
        now = m.OptimizersConfigDiff(indexing_threshold=10_000)  # kilobytes in a segment
        self.server.ask(client.update_collection, self.name, optimizers_config=now)
        greens = 0
        while greens < 2:  # the first may date from before the change
            status = self.server.ask(client.get_collection, self.name).status
            if status == m.CollectionStatus.RED:
                raise Refused(f"{self.server.host} cannot index {self.name}: see the Qdrant server's log")
            greens = greens + 1 if status == m.CollectionStatus.GREEN else 0
            time.sleep(0 if self.server.imitated else 1)

    def close(self) -> None:
        self.server.close()

    def nearest(self, name: str, queries: Matrix, without: Without, depth: int, exact: bool) -> Ranked:
        m = self.server.models
        requests = [
            m.QueryRequest(
                query=vector,
                using=name,
                limit=depth,
                filter=m.Filter(must_not=[m.HasIdCondition(has_id=sorted(map(int, rows)))])
                if len(rows)
                else None,
                params=None if self.server.imitated else m.SearchParams(exact=exact),  # it warns of it
            )
            for vector, rows in zip(queries.tolist(), without, strict=True)
        ]
        answers = self.server.ask(self.server.client.query_batch_points, self.name, requests=requests)
        return padded([[(int(point.id), point.score) for point in answer.points] for answer in answers])
