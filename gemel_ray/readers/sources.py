"""Which files an input means, and how many documents a file holds."""

from __future__ import annotations

from collections.abc import Sequence
from glob import has_magic

import fsspec
import pyarrow.parquet as pq

from gemel_ray.readers.containers import is_whole, json_rows

READ = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet", ".pq")


def files(inputs: Sequence[str]) -> list[str]:
    """The input's files: folders are searched for those a reader knows. Raises ValueError for what is not
    there or not readable by any reader."""
    found: list[str] = []
    for address in inputs:
        filesystem, path = fsspec.core.url_to_fs(address)
        if not filesystem.exists(path) and has_magic(path) and (matches := sorted(filesystem.glob(path))):
            found += files([filesystem.unstrip_protocol(p) if "://" in address else p for p in matches])
        elif filesystem.isdir(path):
            inside = sorted(p for p in filesystem.find(path) if p.endswith(READ))
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


def count(address: str) -> int | None:
    """Documents of a file, as far as can be told cheaply; None where it cannot be read."""
    try:
        columnar = address.endswith((".parquet", ".pq"))
        if not columnar and is_whole(address):
            return sum(1 for _ in json_rows(address))
        with fsspec.open(address, "rb", compression="infer") as file:
            if columnar:
                return int(pq.ParquetFile(file).metadata.num_rows)
            return sum(bool(line.strip()) for line in file)
    except Exception:  # the reader will say why, as a row
        return None
