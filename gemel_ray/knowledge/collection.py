"""The collections of a Qdrant server that builds fill, one each.

    vectors.address = http://host:6333/NAME

A build's collection is NAME-0a1b2c3d4e5f, which the workspace records; the alias NAME leads to the one that
was completed last. In its metadata a collection says since when it is being filled, or that it is complete,
so that what a killed build leaves blocks no other, and is found.
"""

from __future__ import annotations

import calendar
import re
import time
import uuid
from typing import Any, Final

from gemel_ray.knowledge.server import Refused, Say, Server

_STATE, _COMPLETE, _TIME = "gemel_ray", "complete", "%Y-%m-%dT%H:%M:%SZ"
_ABANDONED: Final = 24 * 3600  # seconds after which an unfinished collection is no build's any more


def new_name(server: Server, say: Say) -> str:
    """For the collection of a build that is about to begin, on a server that has been tried: it lets us
    write. What builds left that did not end is said, and dropped when it is a day old."""
    server.check(say)
    listed = [c.name for c in server.ask(server.client.get_collections).collections]
    if server.name in listed:
        raise Refused(
            f"the Qdrant server at {server.host} has a collection {server.name}, which is not a build's: end "
            "vectors.address with another name, or delete it"
        )
    for left in listed:
        if is_ours(server.name, left):
            _leftover(server, left, say)
    name = f"{server.name}-{uuid.uuid4().hex[:12]}"
    create(server, name, {"mention": 1})
    drop(server, name)
    return name


def is_ours(name: str, collection: str) -> bool:
    """Whether it is called as the collections of builds to the address's NAME are."""
    return re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{12}}", collection) is not None


def create(server: Server, collection: str, widths: dict[str, int]) -> None:
    """An empty one for vectors of these widths, as the options want it."""
    m, options = server.models, server.options
    on_disk = options.on_disk or None
    int8 = m.ScalarQuantizationConfig(type=m.ScalarType.INT8, always_ram=True)
    vectors = {
        name: m.VectorParams(size=width, distance=m.Distance.COSINE, on_disk=on_disk)
        for name, width in widths.items()
    }
    wanted = {
        "vectors_config": vectors,
        "optimizers_config": m.OptimizersConfigDiff(indexing_threshold=0),  # no graph while points still come
        "hnsw_config": m.HnswConfigDiff(on_disk=True) if on_disk else None,
        "quantization_config": m.ScalarQuantization(scalar=int8) if options.quantized else None,
        "shard_number": options.shards or None,
        "replication_factor": options.replicas or None,
        "metadata": {_STATE: time.strftime(_TIME, time.gmtime())},
    }
    try:
        server.ask(server.client.create_collection, collection, **wanted)
    except Refused:
        if not server.has(collection):  # else it was made, and the answer lost
            raise


def complete(server: Server, collection: str) -> None:
    """All of it was written."""
    server.ask(server.client.update_collection, collection, metadata={_STATE: _COMPLETE})


def lead(server: Server, collection: str) -> None:
    """From now on the alias leads to it, in one step for whoever asks."""
    m = server.models
    gone = m.DeleteAliasOperation(delete_alias=m.DeleteAlias(alias_name=server.name))
    alias = m.CreateAlias(collection_name=collection, alias_name=server.name)
    there = server.name in {a.alias_name for a in server.ask(server.client.get_aliases).aliases}
    operations = [*([gone] if there else []), m.CreateAliasOperation(create_alias=alias)]
    server.ask(server.client.update_collection_aliases, change_aliases_operations=operations)


def drop(server: Server, collection: str) -> None:
    """One that is not there is no fault."""
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
    """Seconds since then; 0 where nobody can say."""
    try:
        return time.time() - calendar.timegm(time.strptime(str(begun), _TIME))
    except ValueError:
        return 0.0
