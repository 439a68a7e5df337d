"""Which documents of the input a run takes: those not done yet, of the first so many, or of a sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gemel_ray.job.filters import Filters
from gemel_ray.job.results import Keys, keys
from gemel_ray.readers import count, documents


@dataclass(frozen=True)
class Selection:
    """`limit`: only the first so many documents of the input; `sample`: of those this share, always the
    same documents. What a run leaves out, a later one without limit or sample does."""

    limit: int | None = None
    sample: float = 1.0

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit takes at least one document, not {self.limit}")
        if not 0 < self.sample <= 1:
            raise ValueError(f"--sample takes a share above 0, and at most 1, not {self.sample:g}")

    def of(self, inputs: Sequence[str]) -> list[Share]:
        """What is taken of each file. With a limit, files are counted, as far as it reaches."""
        shares, left = [], self.limit
        for address in inputs:
            if left is not None and left <= 0:
                break
            shares.append(Share(address, left, self.sample))
            if left is not None:
                left -= min(left, _counted(address, left))
        return shares

    def total(self, inputs: Sequence[str]) -> int:
        """About how many documents that are; 0 where it cannot be told without reading everything."""
        numbers = [count(address) for address in inputs]
        if any(number is None for number in numbers) and self.limit is None:
            return 0
        known = sum(number or 0 for number in numbers) or self.limit or 0
        return round(min(known, self.limit or known) * self.sample)


@dataclass(frozen=True)
class Share:
    """What is taken of one file: of the first `limit` documents, where there is one, the `sample`."""

    address: str
    limit: int | None = None
    sample: float = 1.0

    def tables(self, done: Keys, filters: Filters) -> Iterator[pa.Table]:
        """The file's documents that are taken and not `done` (sorted keys), the filtered marked."""
        left = self.limit
        for table in documents(self.address, fetch_official_images=filters.input.fetch_official_images):
            taken = table if left is None else table.slice(0, left)
            new = self._taken(keys(taken["source"].to_pylist()), done)
            if new.any():
                yield filters.marked(taken.filter(pa.array(new)))
            if left is not None and (left := left - len(taken)) <= 0:
                return

    def _taken(self, sources: Keys, done: Keys) -> npt.NDArray[np.bool_]:
        sampled = sources <= np.uint64(min(self.sample * 2.0**64, 2.0**64 - 2048))
        return sampled & ~np.isin(sources, done)


def _counted(address: str, most: int) -> int:
    """Documents of the file, or `most`, if it holds more."""
    known = count(address)
    if known is not None:
        return min(known, most)
    rows = (1 for table in documents(address) for _ in range(len(table)))
    return sum(islice(rows, most))
