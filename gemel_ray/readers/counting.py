"""How many documents a file holds, as far as can be told cheaply."""

from __future__ import annotations

import json

import fsspec
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gemel_ray.readers.columnar import ARROW, PARQUET, arrow_batches
from gemel_ray.readers.containers import is_whole, json_rows
from gemel_ray.readers.delimited import TABLES, table_rows
from gemel_ray.readers.opening import lines, opened
from gemel_ray.readers.shards import SHARDS
from gemel_ray.stores import scheme


def count(address: str) -> int | None:
    """Documents of a file; None where it cannot be read, is a shard with nothing beside it that tells, or
    would have to be read through, over a network."""
    name = address.lower()
    try:
        if name.endswith(SHARDS):
            return _counted_beside(address)
        if scheme(address) and not name.endswith(PARQUET):
            return None
        if name.endswith(TABLES):
            return sum(1 for _ in table_rows(address))
        if name.endswith((*PARQUET, *ARROW)):
            with fsspec.open(address, "rb") as file:
                if name.endswith(ARROW):
                    return sum(len(batch) for batch in arrow_batches(file))
                return int(pq.ParquetFile(file).metadata.num_rows)
        if is_whole(address):
            return sum(1 for _ in json_rows(address))
        with opened(address) as file:
            return sum(bool(line.strip()) for line in lines(file))
    except Exception:  # the reader will say why, as a row
        return None


def _counted_beside(shard: str) -> int | None:
    """The pairs that img2dataset says it put into a shard: in 00000_stats.json, or row by row in Parquet."""
    stem = shard[: shard.lower().rindex(".tar" if ".tar" in shard.lower() else ".")]
    filesystem, path = fsspec.core.url_to_fs(stem)
    if filesystem.exists(f"{path}_stats.json"):
        with filesystem.open(f"{path}_stats.json") as file:
            return int(json.load(file)["successes"])
    if filesystem.exists(f"{path}.parquet"):
        with filesystem.open(f"{path}.parquet") as file:
            status = pq.read_table(file, columns=["status"])["status"]
        return int(pc.sum(pc.equal(status, "success")).as_py() or 0)
    return None
