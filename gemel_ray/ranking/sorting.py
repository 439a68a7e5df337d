"""Sorts (key, row) pairs in a fixed memory, however many there are: sorted runs on disk, then one merge. And
arrays on disk that grow.

    pairs = Sorter(folder)
    pairs.add(keys, rows)                   # again and again
    for block in pairs.ascending(): ...
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

PAIR = np.dtype([("key", np.uint64), ("row", np.int32)])
Pairs = npt.NDArray[np.void]  # of `PAIR`
_PAIRS = 1 << 21  # in memory at once: 24 MiB, and as much again while they are sorted


class Sorter:
    """Pairs that are added in any order and read in ascending order, equal ones once. Runs are in an unnamed
    file in `folder`, which disappears with the process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting, self._count = list[Pairs](), 0
        self._file: BinaryIO | None = None
        self._ends = [0]  # of the runs in the file, in pairs

    def add(self, keys: npt.NDArray[np.uint64], rows: npt.NDArray[np.integer]) -> None:
        """Add row i under key i."""
        for start in range(0, len(keys), _PAIRS):
            some = slice(start, start + _PAIRS)
            pairs = np.empty(len(keys[some]), PAIR)
            pairs["key"], pairs["row"] = keys[some], rows[some]
            if self._count + len(pairs) > _PAIRS:
                self._write_run()
            self._waiting.append(pairs)
            self._count += len(pairs)

    def ascending(self) -> Iterator[Pairs]:
        """All pairs, in blocks. Nothing can be added afterwards."""
        if self._file is None:
            if self._waiting:
                yield _sorted(np.concatenate(self._waiting))
            return
        self._write_run()
        size = max(1, _PAIRS // (len(self._ends) - 1))
        runs = [_Run(self._file, start, end, size) for start, end in pairwise(self._ends)]
        while runs := [run for run in runs if run.read()]:
            # The next block of a run may begin right after its last pair: up to there all runs are known.
            known = min((run.last for run in runs if run.continues), default=None)
            yield _sorted(np.concatenate([run.take(known) for run in runs]))
        self._file.close()

    def _write_run(self) -> None:
        if self._file is None:
            made = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            self._file = cast(BinaryIO, made)
        run = _sorted(np.concatenate(self._waiting))
        run.tofile(self._file)
        self._ends.append(self._ends[-1] + len(run))
        self._waiting, self._count = [], 0


def merged(one: Iterator[Pairs], other: Iterator[Pairs]) -> Iterator[Pairs]:
    """Two ascending streams of blocks, which have no pair in common, as one."""
    first, second = next(one, None), next(other, None)
    while first is not None and second is not None:
        last = min(_last(first), _last(second))
        a, b = _until(first, last), _until(second, last)
        yield _inserted(first[:a], second[:b])
        first = first[a:] if a < len(first) else next(one, None)
        second = second[b:] if b < len(second) else next(other, None)
    for block, rest in ((first, one), (second, other)):
        if block is not None:
            yield block
            yield from rest


def _inserted(pairs: Pairs, new: Pairs) -> Pairs:
    """Ascending pairs with others inserted. Faster than sorting all of them."""
    if not len(new) or not len(pairs):
        return pairs if len(pairs) else new
    keys = np.ascontiguousarray(pairs["key"])
    begins = np.append(True, keys[1:] != keys[:-1])
    distinct = keys[begins]
    place = np.searchsorted(distinct, new["key"])
    there = distinct[np.minimum(place, len(distinct) - 1)] == new["key"]
    # A pair as one number: its key's place, odd where the key is one of `distinct`, then its row.
    here = (2 * np.cumsum(begins) - 1 << 32) + pairs["row"]
    return np.insert(pairs, np.searchsorted(here, (2 * place + there << 32) + new["row"]), new)


def _last(pairs: Pairs) -> tuple[int, int]:
    return int(pairs["key"][-1]), int(pairs["row"][-1])


def _until(pairs: Pairs, last: tuple[int, int]) -> int:
    """The number of the ascending pairs up to `last`."""
    key, row = last
    first, end = (int(np.searchsorted(pairs["key"], np.uint64(key), side)) for side in ("left", "right"))
    return first + int(np.searchsorted(pairs["row"][first:end], np.int32(row), "right"))


class _Run:
    """Ascending pairs of a file, read in blocks of `size`."""

    def __init__(self, file: BinaryIO, at: int, end: int, size: int) -> None:
        self._file, self._at, self._end, self._size = file, at, end, size

    def read(self) -> bool:
        """Read the block after the pairs that were taken; whether there is one."""
        self._file.seek(self._at * PAIR.itemsize)
        self._block = np.fromfile(self._file, PAIR, min(self._size, self._end - self._at))
        return len(self._block) > 0

    @property
    def continues(self) -> bool:
        """Whether there are pairs after this block."""
        return self._at + len(self._block) < self._end

    @property
    def last(self) -> tuple[int, int]:
        """The last pair of the block."""
        return _last(self._block)

    def take(self, last: tuple[int, int] | None) -> Pairs:
        """Take the pairs of the block up to `last`; all if it is None."""
        taken = self._block if last is None else self._block[: _until(self._block, last)]
        self._at += len(taken)
        return taken


def _sorted(pairs: Pairs) -> Pairs:
    """The different pairs, ascending."""
    pairs = pairs[np.lexsort((pairs["row"], pairs["key"]))]
    return pairs[np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]]


class GrowingArray:
    """An array of one dimension in a file, as np.save writes it, which is written part by part."""

    def __init__(self, file: Path, dtype: npt.DTypeLike) -> None:
        self._dtype, self._count = np.dtype(dtype), 0
        self._file = file.open("wb")
        self._header()

    def add(self, values: npt.NDArray[np.generic]) -> None:
        """Append these values."""
        values.astype(self._dtype, copy=False).tofile(self._file)
        self._count += len(values)

    def close(self) -> None:
        """Complete the file."""
        self._file.seek(0)
        self._header()  # as long as before: numpy leaves room for the number of values
        self._file.close()

    def _header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self._dtype)
        shape = {"descr": descr, "fortran_order": False, "shape": (self._count,)}
        np.lib.format.write_array_header_1_0(self._file, shape)  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return self._count
