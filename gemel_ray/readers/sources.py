"""Which files an input means, and how many documents a file holds."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from glob import has_magic

import fsspec
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gemel_ray.readers.containers import is_whole, json_rows
from gemel_ray.readers.shards import SHARDS

READ = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet", ".pq", *SHARDS)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 100_000  # files that braces may stand for


def files(inputs: Sequence[str]) -> list[str]:
    """The input's files: folders are searched for those a reader knows, and 00000..00012 in braces stands
    for all between. Raises ValueError for what is not there or not readable by any reader."""
    found: list[str] = []
    for address in itertools.chain.from_iterable(map(_spelled_out, inputs)):
        filesystem, path = fsspec.core.url_to_fs(address)
        if not filesystem.exists(path) and has_magic(path) and (matches := sorted(filesystem.glob(path))):
            wanted = _documents(matches)
            found += files([filesystem.unstrip_protocol(p) if "://" in address else p for p in wanted])
        elif filesystem.isdir(path):
            inside = _documents(sorted(p for p in filesystem.find(path) if p.endswith(READ)))
            if not inside:
                raise ValueError(f"{address} holds no file that ends in {', '.join(READ)}")
            found += [filesystem.unstrip_protocol(p) if "://" in address else p for p in inside]
        elif not filesystem.exists(path):
            raise ValueError(f"there is no {address}")
        elif not address.endswith(READ):
            raise ValueError(f"{address}: a document file ends in {', '.join(READ)}")
        else:
            found.append(address)
    return found


def _spelled_out(address: str) -> Iterator[str]:
    """{00000..00012}, with leading zeros, and {a,b}, as shells have it."""
    braces = _BRACES.search(address)
    if braces is None:
        yield address
        return
    inner = braces[1]
    if between := _RANGE.fullmatch(inner):
        first, last, width = int(between[1]), int(between[2]), len(between[1])
        if not 0 <= last - first < _MOST:
            raise ValueError(f"{address}: {{{inner}}} stands for no files, or for more than {_MOST:,}")
        names = [f"{number:0{width}}" for number in range(first, last + 1)]
    elif "," in inner:
        names = inner.split(",")
    else:
        yield address
        return
    for name in names:
        yield from _spelled_out(address[: braces.start()] + name + address[braces.end() :])


def _documents(inside: Sequence[str]) -> list[str]:
    """Of what a folder holds or a pattern matches, without what img2dataset writes beside the pairs: counts,
    the Parquet that repeats a shard's rows, and the files in a folder whose rows are in a Parquet of its
    name."""
    there = set(inside)
    stems = {p.removesuffix(".parquet") for p in inside if p.endswith(".parquet")}
    return [
        p
        for p in inside
        if not p.endswith("_stats.json")
        and p.removesuffix(".parquet") + ".tar" not in there
        and not {p, p.rpartition("/")[0]} & stems
    ]


def count(address: str) -> int | None:
    """Documents of a file, as far as can be told cheaply; None where it cannot be read, or is a shard with
    nothing beside it that tells."""
    try:
        if address.endswith(SHARDS):
            return _counted_beside(address)
        columnar = address.endswith((".parquet", ".pq"))
        if not columnar and is_whole(address):
            return sum(1 for _ in json_rows(address))
        with fsspec.open(address, "rb", compression="infer") as file:
            if columnar:
                return int(pq.ParquetFile(file).metadata.num_rows)
            return sum(bool(line.strip()) for line in file)
    except Exception:  # the reader will say why, as a row
        return None


def _counted_beside(shard: str) -> int | None:
    """The pairs that img2dataset says it put into a shard: in 00000_stats.json, or row by row in Parquet."""
    stem = shard.partition(".tar")[0]
    filesystem, path = fsspec.core.url_to_fs(stem)
    if filesystem.exists(f"{path}_stats.json"):
        with filesystem.open(f"{path}_stats.json") as file:
            return int(json.load(file)["successes"])
    if filesystem.exists(f"{path}.parquet"):
        with filesystem.open(f"{path}.parquet") as file:
            status = pq.read_table(file, columns=["status"])["status"]
        return int(pc.sum(pc.equal(status, "success")).as_py() or 0)
    return None
