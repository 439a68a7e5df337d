"""Vectors of the entities' descriptions: float16 [entities, width]; zeros without a description."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemel_ray.knowledge.entities import Entities
from gemel_ray.knowledge.hashing import key
from gemel_ray.ranking.examples import Encode
from gemel_ray.ranking.sorting import PAIR

Half = npt.NDArray[np.float16]
_AT_ONCE = 8_192


class Described:
    """The vectors of one version of the knowledge, by their texts."""

    def __init__(self, entities: Entities, vectors: Half) -> None:
        self._vectors = vectors
        pairs = (pair for rows, texts in _texts(entities) for pair in zip(map(key, texts), rows, strict=True))
        found = np.fromiter(pairs, PAIR)
        order = found["key"].argsort()
        self._keys, self._rows = found["key"][order], found["row"][order]

    def of(self, texts: list[str]) -> list[int]:
        """The row of each text; -1: this version has no vector of it."""
        keys = np.array([key(text) for text in texts], np.uint64)
        at = np.minimum(np.searchsorted(self._keys, keys), max(0, len(self._keys) - 1))
        if not len(self._keys):
            return [-1] * len(texts)
        rows = self._rows[at]
        # Of more entities than bank.descriptions none was encoded: their vectors are zeros.
        return np.where((self._keys[at] == keys) & self._vectors[rows].any(axis=1), rows, -1).tolist()

    def vectors(self, rows: list[int]) -> Half:
        """The vectors of some rows."""
        return self._vectors[rows]


def opened(file: Path) -> Half:
    """The vectors, memory-mapped."""
    return np.asarray(np.load(file, mmap_mode="r"))


def write(
    entities: Entities, encode: Encode, width: int, file: Path, former: Described | None = None
) -> None:
    """Write the vectors to `file`, in batches. A text that `former` has, or that occurred before in a batch,
    is not encoded again."""
    write_none(entities, width, file)
    if not len(entities):
        return
    vectors = np.lib.format.open_memmap(file, "r+")  # type: ignore[no-untyped-call]
    for rows, texts in _texts(entities):
        known = former.of(texts) if former else [-1] * len(texts)
        old = [i for i, row in enumerate(known) if row >= 0]
        new = [i for i, row in enumerate(known) if row < 0]
        if former and old:
            vectors[[rows[i] for i in old]] = former.vectors([known[i] for i in old])
        if new:
            place = {text: at for at, text in enumerate(dict.fromkeys(texts[i] for i in new))}
            vectors[[rows[i] for i in new]] = encode(list(place))[[place[texts[i]] for i in new]]
    vectors.flush()


def write_none(entities: Entities, width: int, file: Path) -> None:
    """Write zeros, which take no space on file systems with sparse files."""
    shape = (len(entities), width)
    if not len(entities):
        np.save(file, np.zeros(shape, np.float16))
        return
    np.lib.format.open_memmap(file, "w+", np.float16, shape).flush()  # type: ignore[no-untyped-call]


def _texts(entities: Entities) -> Iterator[tuple[list[int], list[str]]]:
    """Rows and texts of the entities that have a description."""
    rows: list[int] = []
    texts: list[str] = []
    for row, entity in enumerate(entities.rows()):
        if entity["description"]:
            rows.append(row)
            texts.append(f"{entity['name']}: {entity['description']}")
        if len(rows) == _AT_ONCE:
            yield rows, texts
            rows, texts = [], []
    if rows:
        yield rows, texts
