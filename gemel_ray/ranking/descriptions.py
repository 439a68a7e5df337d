"""Vectors of the entities' descriptions: float16 [entities, width]; zeros without a description. Where none
is encoded, the file has one row of zeros."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gemel_ray.knowledge.entities import Entities, EntityChanges
from gemel_ray.ranking.examples import Encode

Half = npt.NDArray[np.float16]
_AT_ONCE = 8_192


def opened(file: Path, count: int) -> Half:
    """The vectors of `count` entities, memory-mapped."""
    vectors: Half = np.load(file, mmap_mode="r")
    return (
        np.asarray(vectors) if len(vectors) == count else np.broadcast_to(vectors, (count, vectors.shape[1]))
    )


def encoded(file: Path) -> bool:
    """Whether the file has vectors: not only the row of zeros."""
    vectors: Half = np.load(file, mmap_mode="r")
    return len(vectors) > 1 or bool(vectors.any())


def write(
    entities: Entities,
    encode: Encode,
    width: int,
    file: Path,
    former: tuple[Half, EntityChanges] | None = None,
) -> None:
    """Write the vectors to `file`, in batches. A description whose vector is among those of the `former`
    version, or that occurred before in a batch, is not encoded again."""
    shape = (len(entities), width)
    vectors = np.lib.format.open_memmap(file, "w+", np.float16, shape)  # type: ignore[no-untyped-call]
    if former:
        _copy(*former, vectors)
    for rows, texts in _without_vectors(entities, vectors):
        place = {text: at for at, text in enumerate(dict.fromkeys(texts))}
        vectors[rows] = encode(list(place))[[place[text] for text in texts]]
    vectors.flush()


def write_none(width: int, file: Path) -> None:
    """Write one row of zeros, which stands for all entities."""
    np.save(file, np.zeros((1, width), np.float16))


def _copy(former: Half, changes: EntityChanges, vectors: Half) -> None:
    place = 0
    for start in range(0, len(former), _AT_ONCE):
        some = former[start : start + _AT_ONCE]
        some = some[changes.kept(start, start + len(some))]
        vectors[place : place + len(some)] = some
        place += len(some)


def _without_vectors(entities: Entities, vectors: Half) -> Iterator[tuple[npt.NDArray[np.int64], list[str]]]:
    """Rows and texts of the entities that have a description and no vector: new ones, and all of them where
    the former version had more entities than bank.descriptions."""
    start = 0
    for batch in entities.table.select(["name", "description"]).to_batches(max_chunksize=_AT_ONCE):
        described = pc.fill_null(pc.not_equal(batch["description"], ""), False).to_numpy(zero_copy_only=False)
        wanted = described & ~vectors[start : start + len(batch)].any(axis=1)
        texts = [f"{e['name']}: {e['description']}" for e in batch.filter(pa.array(wanted)).to_pylist()]
        if texts:
            yield start + np.flatnonzero(wanted), texts
        start += len(batch)
