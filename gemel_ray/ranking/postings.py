"""An inverted index in three flat arrays: hashed keys, and the rows of each. Memory-mapped. And rows
weighted by several keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemel_ray.errors import Mistake
from gemel_ray.ranking.sorting import PAIR, GrowingArray, Pairs, Sorter, merged

Rows = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
_NONE: Rows = np.empty(0, np.int32)
_PARTS = ("keys", "offsets", "rows")
_BATCH, _BLOCK = 65_536, 1 << 20  # pairs that are added, and read, at once


class Postings:
    """`keys` uint64 [k], ascending; the rows of key i are `rows[offsets[i] : offsets[i + 1]]`, ascending."""

    def __init__(self, keys: npt.NDArray[np.uint64], offsets: npt.NDArray[np.int64], rows: Rows) -> None:
        self._keys, self._offsets, self._rows = keys, offsets, rows

    @classmethod
    def open(cls, folder: Path, name: str) -> Postings:
        """Map the files that `write` made. Raises Mistake where an earlier version made others."""
        if not (folder / f"{name}.{_PARTS[0]}.npy").exists():
            raise Mistake(f"{folder} has no index of {name}: build the workspace again")
        mapped = (np.load(folder / f"{name}.{part}.npy", mmap_mode="r") for part in _PARTS)
        return cls(*map(np.asarray, mapped))  # plain arrays over the mapping: indexing them is cheaper

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self._rows)

    def pairs(self) -> tuple[npt.NDArray[np.uint64], Rows]:
        """All keys and rows, a key as often as it has rows."""
        return np.repeat(self._keys, np.diff(self._offsets)), self._rows

    def blocks(self) -> Iterator[Pairs]:
        """All pairs, ascending, in blocks."""
        for start in range(0, len(self), _BLOCK):
            end = min(start + _BLOCK, len(self))
            first, last = (int(self._offsets.searchsorted(at, "right")) - 1 for at in (start, end - 1))
            counts = np.diff(self._offsets[first : last + 2].clip(start, end))
            block = np.empty(end - start, PAIR)
            block["key"] = np.repeat(self._keys[first : last + 1], counts)
            block["row"] = self._rows[start:end]
            yield block

    def of(self, key: int) -> Rows:
        """The rows of `key`."""
        at = int(self._keys.searchsorted(np.uint64(key)))
        if at == len(self._keys) or int(self._keys[at]) != key:
            return _NONE
        return self._rows[self._offsets[at] : self._offsets[at + 1]]

    def each(self, keys: npt.NDArray[np.uint64]) -> tuple[Rows, npt.NDArray[np.int64]]:
        """The rows of several keys, key after key, and for each row the index of its key."""
        if not len(self._keys):
            return _NONE, np.empty(0, np.int64)
        at = np.minimum(self._keys.searchsorted(keys), len(self._keys) - 1)
        first = self._offsets[at]
        lengths = np.where(self._keys[at] == keys, self._offsets[at + 1] - first, 0)
        whose = np.repeat(np.arange(len(keys)), lengths)
        before = np.cumsum(lengths) - lengths
        return self._rows[np.arange(len(whose)) + (first - before)[whose]], whose


@dataclass(frozen=True)
class WeightedRows:
    """Some rows, ascending, with weights."""

    rows: Rows
    weights: npt.NDArray[np.float32]

    @classmethod
    def summed(cls, lists: Sequence[Rows], weights: Sequence[float]) -> WeightedRows:
        """The rows of some lists; the weight of a row is the sum of the weights of its lists."""
        if not lists:
            return cls(_NONE, np.empty(0, np.float32))
        rows, place = np.unique(np.concatenate(lists), return_inverse=True)
        sums = np.bincount(place, np.repeat(weights, list(map(len, lists))), len(rows))
        return cls(rows, sums.astype(np.float32))

    @classmethod
    def unweighted(cls, rows: Rows) -> WeightedRows:
        """Rows of equal weight."""
        return cls(rows, np.zeros(len(rows), np.float32))

    def of(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The weights of these rows; 0 for others."""
        if not len(self.rows):
            return np.zeros(len(rows), np.float32)
        at = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.where(self.rows[at] == rows, self.weights[at], np.float32(0))

    def best(self, most: int, then: Sequence[WeightedRows] = ()) -> list[int]:
        """At most `most` rows, by descending weight; rows of equal weight by their weights in `then`."""
        order = np.lexsort([self.rows, *(-other.of(self.rows) for other in reversed(then)), -self.weights])
        best: list[int] = self.rows[order[:most]].tolist()
        return best


class PostingsWriter:
    """Writes an index part by part; equal pairs count once. Its memory does not grow with the pairs.
    `former`: ascending pairs of another index, none of which is added."""

    def __init__(self, folder: Path, name: str, former: Iterable[Pairs] = ()) -> None:
        self._pairs, self._folder, self._name, self._former = Sorter(folder), folder, name, iter(former)

    def add(self, keys: npt.NDArray[np.uint64], rows: npt.NDArray[np.integer]) -> None:
        """Add row i under key i."""
        self._pairs.add(keys, rows)

    def finish(self) -> int:
        """Complete the files. Returns the number of different pairs."""
        files = (self._folder / f"{self._name}.{part}.npy" for part in _PARTS)
        keys, offsets, rows = map(GrowingArray, files, (np.uint64, np.int64, np.int32))
        last = None
        for block in merged(self._former, self._pairs.ascending()):
            every = np.ascontiguousarray(block["key"])
            new = np.flatnonzero(np.append(every[0] != last, every[1:] != every[:-1]))
            keys.add(every[new])
            offsets.add(len(rows) + new)
            rows.add(block["row"])
            last = every[-1]
        offsets.add(np.array([len(rows)]))
        for file in (keys, offsets, rows):
            file.close()
        return len(rows)


def write(pairs: Iterable[tuple[int, int]], folder: Path, name: str) -> None:
    """Write an index of (key, row) pairs, given in any order; equal pairs count once."""
    writer, unread = PostingsWriter(folder, name), iter(pairs)
    while len(some := np.fromiter(islice(unread, _BATCH), PAIR)):
        writer.add(some["key"], some["row"])
    writer.finish()


def among(values: npt.NDArray[Any], known: npt.NDArray[Any]) -> Mask:
    """Which of `values` are among the ascending `known`, where these are few."""
    if not len(known):
        return np.zeros(len(values), np.bool_)
    at = np.searchsorted(known, values)
    return np.asarray(known[np.minimum(at, len(known) - 1)] == values)
