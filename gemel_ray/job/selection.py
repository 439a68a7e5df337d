"""Which documents of the input a run takes: those not done yet, of the first so many, or of a sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa

from gemel_ray.errors import Mistake
from gemel_ray.job.filters import Filters
from gemel_ray.job.identity import REST_DIGEST, digests, file_key, is_rest, marked
from gemel_ray.job.index import Done, Known
from gemel_ray.job.results import keys
from gemel_ray.readers import count, documents

_NONE: Mapping[str, int] = {}


@dataclass(frozen=True)
class Selection:
    """`limit`: only the first so many documents of the input; `sample`: of those this share, always the
    same documents. What a run leaves out, a later one without limit or sample does."""

    limit: int | None = None
    sample: float = 1.0

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise Mistake(f"--limit takes at least one document, not {self.limit}")
        if not 0 < self.sample <= 1:
            raise Mistake(f"--sample takes a share above 0, and at most 1, not {self.sample:g}")

    def of(
        self, inputs: Sequence[str], keys: Mapping[str, int] | None = None, whole: Mapping[str, int] = _NONE
    ) -> list[Share]:
        """What is taken of each file; `keys` of those that were known by another address, numbers of
        documents of those that are as they were (inputs.unchanged). With a limit, the others are counted, as
        far as it reaches."""
        shares, left = [], self.limit
        for address in inputs:
            if left is not None and left <= 0:
                break
            key = (keys or {}).get(address, file_key(address))
            shares.append(Share(address, key, left, self.sample, whole.get(address)))
            if left is not None:
                left -= min(left, whole[address] if address in whole else _counted(address, left))
        return shares

    def total(self, inputs: Sequence[str], whole: Mapping[str, int] = _NONE) -> int:
        """About how many documents that are; 0 where it cannot be told without reading everything."""
        numbers = [whole[address] if address in whole else count(address) for address in inputs]
        if any(number is None for number in numbers) and self.limit is None:
            return 0
        known = sum(number or 0 for number in numbers) or self.limit or 0
        return round(min(known, self.limit or known) * self.sample)


@dataclass(frozen=True)
class Share:
    """What is taken of one file: of the first `limit` documents, where there is one, the `sample`."""

    address: str
    key: int  # by which the file is known: see job/identity.py
    limit: int | None = None
    sample: float = 1.0
    whole: int | None = None  # documents, where the file is as a run that has been through it saw it

    def tables(self, done: Done, filters: Filters) -> Iterator[pa.Table]:
        """The file's documents that are taken and not `done`, the filtered marked. Where all of the file was
        read, `done` is told what was not met in it. One that is as it was, and all done, is not read."""
        left, known, lost, number = self.limit, done.of(self.key), False, 0
        if self.whole is not None and known.are_all(self.whole):
            return
        for table in documents(self.address, fetch_official_images=filters.input.fetch_official_images):
            taken = table if left is None else table.slice(0, left)
            number += len(taken)
            lost = lost or is_rest(taken["source"][-1].as_py())
            if len(new := self._new(taken, known)):
                yield filters.marked(new)
            if left is not None and (left := left - len(taken)) <= 0:
                return
        if not lost:
            done.passed(self.key, known, number if self.sample == 1.0 else None)

    def _new(self, table: pa.Table, known: Known) -> pa.Table:
        """Those of the sample that are to be done, their sources marked."""
        sources = table["source"].to_pylist()
        sampled = (keys(sources) <= np.uint64(min(self.sample * 2.0**64, 2.0**64 - 2048))).tolist()
        at, marks = [], []
        for number, (source, of_it) in enumerate(zip(sources, digests(table).tolist(), strict=True)):
            digest = REST_DIGEST if is_rest(source) else of_it
            met = known.meet(digest)
            if met == "done" or not sampled[number]:
                continue
            at.append(number)
            marks.append(marked(source, self.key, digest, met == "again"))
        new = table.take(pa.array(at, pa.int64()))
        return new.set_column(new.column_names.index("source"), "source", pa.array(marks, pa.string()))


def _counted(address: str, most: int) -> int:
    """Documents of the file, or `most`, if it holds more."""
    known = count(address)
    if known is not None:
        return min(known, most)
    rows = (1 for table in documents(address) for _ in range(len(table)))
    return sum(islice(rows, most))
