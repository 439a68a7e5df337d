"""The output folder of a job: links/*.parquet, one row a mention, and manifest.json.

A batch is one file under a name made from its rows, written aside and then renamed: what stands there
is whole, and a batch that is computed twice is there once.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Keys = npt.NDArray[np.uint64]


def folder(output: Path) -> Path:
    """Where the links lie."""
    return output / "links"


def prepare(output: Path) -> None:
    """Make the folder, and clear away what a killed run was writing."""
    folder(output).mkdir(parents=True, exist_ok=True)
    for aside in folder(output).glob(".*"):
        aside.unlink()


def write(rows: pa.Table, output: Path) -> Path:
    """Write one batch; its documents must be whole in it."""
    names = zip(rows["document_id"].to_pylist(), rows["mention_id"].to_pylist(), strict=True)
    digest = hashlib.blake2b(repr(list(names)).encode(), digest_size=12).hexdigest()
    path = folder(output) / f"{digest}.parquet"
    aside = folder(output) / f".{digest}-{uuid.uuid4().hex}"  # workers of many machines write here
    pq.write_table(rows, aside, compression="zstd")
    aside.replace(path)
    return path


def tables(output: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The written batches. Raises ValueError when the folder holds none, or no readable one."""
    if not folder(output).is_dir():
        raise ValueError(f"{output} holds no links: gemel-ray link writes them to {folder(output)}")
    for file in sorted(folder(output).glob("*.parquet")):
        try:
            yield pq.read_table(file, columns=columns)
        except (pa.ArrowInvalid, OSError) as fault:
            raise ValueError(f"cannot read {file}: {fault}") from fault


def finished(output: Path) -> Keys:
    """Sorted hashes of the documents that are there: 8 bytes each."""
    found = [keys(t["document_id"].unique().to_pylist()) for t in tables(output, ["document_id"])]
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.uint64)


def keys(document_ids: Sequence[str]) -> Keys:
    """Hashes of document ids, in their order."""
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in document_ids)
    return np.frombuffer(digests, np.uint64)


def counts(output: Path) -> dict[str, Any]:
    """Documents and rows of the whole output, by status."""
    statuses: Counter[str] = Counter()
    documents = 0
    for table in tables(output, ["document_id", "status"]):
        statuses.update(table["status"].to_pylist())
        documents += len(table["document_id"].unique())
    return {
        "documents": documents,
        "rows": sum(statuses.values()),
        "statuses": dict(sorted(statuses.items())),
    }
