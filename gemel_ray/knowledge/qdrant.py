"""Vector stores in Qdrant: a folder (`EdgeStore`) or a server's collection (`ServerStore`).

The folder is searched by Qdrant's embedded engine, in many processes at once. Neither store settles ties:
that, and all checks, are done by `vectors.Vectors`. Only this file imports qdrant_edge.
"""

from __future__ import annotations

import calendar
import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from gemel_ray.knowledge.server import Refused, Say, Server
from gemel_ray.knowledge.vectors import QUERIES, Matrix, Points, Ranked, Without, padded

# The collections of a Qdrant server that builds fill, one each.
#
#     vectors.address = http://host:6333/NAME
#
# A build's collection is NAME-0a1b2c3d4e5f, which the workspace records; the alias NAME points to the one
# that was completed last. The metadata of a collection have the time when filling began, or that it is
# complete, so that leftovers of killed builds are found and do not block others.


_STATE, _COMPLETE, _TIME = "gemel_ray", "complete", "%Y-%m-%dT%H:%M:%SZ"
_ABANDONED: Final = 24 * 3600  # seconds after which an unfinished collection is abandoned


def new_name(server: Server, say: Say) -> str:
    """The name of a new build's collection, on a server that was checked to be writable. Leftovers of
    unfinished builds are reported, and dropped when they are a day old."""
    server.check(say)
    listed = [c.name for c in server.ask(server.client.get_collections).collections]
    if server.name in listed:
        raise Refused(
            f"the Qdrant server at {server.host} has a collection {server.name}, which is not a build's: end "
            "vectors.address with another name, or delete it"
        )
    for left in listed:
        if is_build_collection(server.name, left):
            _leftover(server, left, say)
    name = f"{server.name}-{uuid.uuid4().hex[:12]}"
    create(server, name, {"mention": 1})
    drop(server, name)
    return name


def is_build_collection(name: str, collection: str) -> bool:
    """Whether its name is that of a build's collection for the address's NAME."""
    return re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{12}}", collection) is not None


def create(server: Server, collection: str, widths: dict[str, int]) -> None:
    """Create an empty one for vectors of these widths, as the options say."""
    m, options = server.models, server.options
    on_disk = options.on_disk or None
    int8 = m.ScalarQuantizationConfig(type=m.ScalarType.INT8, always_ram=True)
    vectors = {
        name: m.VectorParams(size=width, distance=m.Distance.COSINE, on_disk=on_disk)
        for name, width in widths.items()
    }
    wanted = {
        "vectors_config": vectors,
        "optimizers_config": m.OptimizersConfigDiff(indexing_threshold=0),  # no graph while points are added
        "hnsw_config": m.HnswConfigDiff(on_disk=True) if on_disk else None,
        "quantization_config": m.ScalarQuantization(scalar=int8) if options.quantized else None,
        "shard_number": options.shards or None,
        "replication_factor": options.replicas or None,
        "metadata": {_STATE: time.strftime(_TIME, time.gmtime())},
    }
    try:
        server.ask(server.client.create_collection, collection, **wanted)
    except Refused:
        if not server.has(collection):  # else it was made, and only the answer was lost
            raise


def complete(server: Server, collection: str) -> None:
    """Mark it as complete."""
    server.ask(server.client.update_collection, collection, metadata={_STATE: _COMPLETE})


def point_alias(server: Server, collection: str) -> None:
    """Point the alias to it, atomically."""
    m = server.models
    gone = m.DeleteAliasOperation(delete_alias=m.DeleteAlias(alias_name=server.name))
    alias = m.CreateAlias(collection_name=collection, alias_name=server.name)
    there = server.name in {a.alias_name for a in server.ask(server.client.get_aliases).aliases}
    operations = [*([gone] if there else []), m.CreateAliasOperation(create_alias=alias)]
    server.ask(server.client.update_collection_aliases, change_aliases_operations=operations)


def drop(server: Server, collection: str) -> None:
    """Drop it; no error if it does not exist."""
    server.ask(server.client.delete_collection, collection)


def _leftover(server: Server, collection: str, say: Say) -> None:
    if not server.has(collection):  # dropped meanwhile
        return
    facts: Any = server.ask(server.client.get_collection, collection).config.metadata
    state = (facts or {}).get(_STATE, _COMPLETE)
    if state == _COMPLETE:
        return
    begun = f"collection {collection} of the Qdrant server was begun at {state} and never completed"
    if _age(state) > _ABANDONED:
        drop(server, collection)
        say(f"{begun}: dropped")
    else:
        say(f"{begun}: delete it, if no build is at work on it; after a day the next build does")


def _age(begun: Any) -> float:
    """Seconds since then; 0 if unknown."""
    try:
        return time.time() - calendar.timegm(time.strptime(str(begun), _TIME))
    except ValueError:
        return 0.0


@contextmanager
def _edge_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the engine has no error class
        raise OSError(f"the vectors in {folder} (it must be writable): {error}") from error


class EdgeStore:
    """A folder, written by one process, then searched by many.

    The engine opens its files for writing even to search, and rewrites small ones with the same content:
    the folder must be writable, and its files' times mean nothing.
    """

    def __init__(self, shard: Any, widths: Mapping[str, int]) -> None:
        import qdrant_edge

        self._edge, self._shard, self.widths, self.at_once = qdrant_edge, shard, dict(widths), QUERIES

    @classmethod
    def create(cls, folder: Path, widths: Mapping[str, int]) -> EdgeStore:
        """An empty store. Raises OSError if the folder has vectors already or cannot be written."""
        import qdrant_edge as q

        params = {name: q.EdgeVectorParams(width, q.Distance.Cosine) for name, width in widths.items()}
        config = q.EdgeConfig(params, wal_enabled=False)  # a log would lock the folder for one process
        folder.mkdir(parents=True, exist_ok=True)
        with _edge_errors(folder):
            return cls(q.EdgeShard.create(str(folder), config), widths)

    @classmethod
    def open(cls, folder: Path) -> EdgeStore:
        """The finished store. Raises OSError if there is none or its files cannot be opened for writing."""
        import qdrant_edge as q

        with _edge_errors(folder):
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
    """A collection of a Qdrant server; closing it closes the server's client."""

    def __init__(self, server: Server, name: str, widths: Mapping[str, int]) -> None:
        self.server, self.name, self.widths, self.at_once = server, name, dict(widths), QUERIES

    @classmethod
    def create(cls, server: Server, name: str, widths: Mapping[str, int]) -> ServerStore:
        """An empty collection. Raises as Server.ask does."""
        create(server, name, dict(widths))
        return cls(server, name, widths)

    @classmethod
    def open(cls, server: Server, name: str) -> ServerStore:
        """A finished collection. Raises FileNotFoundError if there is none, else as Server.ask does."""
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
        complete(self.server, self.name)

    def _index(self) -> None:
        m, client = self.server.models, self.server.client
        now = m.OptimizersConfigDiff(indexing_threshold=10_000)  # kilobytes in a segment
        self.server.ask(client.update_collection, self.name, optimizers_config=now)
        greens = 0
        while greens < 2:  # the first status may be from before the change
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
                params=None
                if self.server.imitated
                else m.SearchParams(exact=exact),  # the imitation warns of it
            )
            for vector, rows in zip(queries.tolist(), without, strict=True)
        ]
        answers = self.server.ask(self.server.client.query_batch_points, self.name, requests=requests)
        return padded([[(int(point.id), point.score) for point in answer.points] for answer in answers])
