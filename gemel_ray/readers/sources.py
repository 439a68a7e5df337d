"""Which files an input means, and how many documents a file holds."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import has_magic

import fsspec
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gemel_ray.readers.containers import is_whole, json_rows
from gemel_ray.readers.shards import SHARDS
from gemel_ray.stores import asked, bucket_is_there, opened, plainly, scheme

READ = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet", ".pq", *SHARDS)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 100_000  # files that braces may stand for
_AT_ONCE = 32  # of them looked for


def files(inputs: Sequence[str]) -> list[str]:
    """The input's files: folders are searched for those a reader knows, and 00000..00012 in braces stands
    for all between. Raises ValueError for what is not there or not readable by any reader."""
    addresses = list(itertools.chain.from_iterable(map(_spelled_out, inputs)))
    for first in {scheme(address): address for address in reversed(addresses)}.values():
        asked(first, lambda filesystem, path: filesystem.exists(path))  # a wrong key is told before the rest
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(itertools.chain.from_iterable(threads.map(_files, addresses)))


def _files(address: str) -> list[str]:
    filesystem, path = opened(address)

    def named(inside: str) -> str:
        return str(filesystem.unstrip_protocol(inside)) if "://" in address else inside

    with plainly(address):
        if address.endswith(READ) and filesystem.isfile(path):  # asked first: http takes a page for a folder
            return [address]
        if filesystem.isdir(path):
            found = _documents(sorted(p for p in filesystem.find(path) if p.endswith(READ)))
            if not found:
                raise ValueError(f"{address} holds no file that ends in {', '.join(READ)}")
            return [named(p) for p in found]
        if filesystem.exists(path):
            raise ValueError(f"{address}: a document file ends in {', '.join(READ)}")
        matches = filesystem.glob(path, detail=True) if has_magic(path) else {}
        if not matches:
            bucket_is_there(filesystem, path, address)
            raise ValueError(f"there is no {address}")
        whole = [p for p in _documents(sorted(matches)) if matches[p]["type"] == "file" and p.endswith(READ)]
        others = [p for p in _documents(sorted(matches)) if p not in whole]
    return [named(p) for p in whole] + [file for p in others for file in _files(named(p))]


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
    """Documents of a file, as far as can be told cheaply; None where it cannot be read, is a shard with
    nothing beside it that tells, or would have to be read through, over a network."""
    try:
        if address.endswith(SHARDS):
            return _counted_beside(address)
        columnar = address.endswith((".parquet", ".pq"))
        if not columnar and scheme(address):
            return None
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
