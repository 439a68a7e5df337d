"""Figures with their 95% intervals, by bootstrap over documents.

Mentions of one document share its picture and its text, so they are drawn together. A resample is a vector
of how often each document was drawn; all figures of all resamples are then one matrix product. Knows
nothing of links: numbers of mentions come in, figures go out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypedDict

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
DRAWS = 1000
_CHUNK = 4_000_000  # documents times resamples in memory at once


class PlainFigure(TypedDict):
    """A figure in JSON; None: not known."""

    value: float | None
    interval_95: list[float] | None
    mentions: int


@dataclass(frozen=True)
class Figure:
    """A value, its 95% interval, and the number of its mentions; nan: not known."""

    value: float
    low: float
    high: float
    mentions: int

    def plain(self) -> PlainFigure:
        """The figure for JSON, which has no nan."""
        interval = None if math.isnan(self.low) else [round(self.low, 4), round(self.high, 4)]
        value = None if math.isnan(self.value) else round(self.value, 4)
        return {"value": value, "interval_95": interval, "mentions": self.mentions}


@dataclass(frozen=True)
class Resampling:
    """`documents` names the document of each mention. The same seed draws the same documents, so figures
    of two runs on the same mentions are paired."""

    documents: Sequence[str]
    draws: int = DRAWS
    seed: int = 0

    @cached_property
    def _document(self) -> npt.NDArray[np.int64]:
        return np.unique(np.asarray(self.documents, dtype=object), return_inverse=True)[1].reshape(-1)

    @property
    def count(self) -> int:
        """The number of documents."""
        return int(self._document.max(initial=-1)) + 1

    def by_document(self, columns: npt.ArrayLike) -> Numbers:
        """The sums [documents, figures] of `columns` [mentions, figures]."""
        columns = np.asarray(columns, np.float64)
        sums = [np.bincount(self._document, column, self.count) for column in columns.T]
        return np.stack(sums, axis=1) if sums else np.empty((self.count, 0))

    def sums(self, columns: npt.ArrayLike) -> Numbers:
        """The sums [1 + draws, figures] of `columns` [mentions, figures]: over all documents, then over each
        resample."""
        sums, count = self.by_document(columns), self.count
        rows = [sums.sum(0, keepdims=True)]
        step = max(1, _CHUNK // max(1, count))
        for start in range(0, self.draws if count else 0, step):
            times_drawn = _drawn(count, min(step, self.draws - start), (self.seed, start))
            rows.append(times_drawn.astype(np.float64) @ sums)
        return np.concatenate(rows)

    def shares(self, right: npt.ArrayLike, among: npt.ArrayLike) -> list[Figure]:
        """For each column, the share of the mentions `among` that are `right`: both are [mentions, figures]
        of zeros and ones. Where all or none are right, all resamples are equal, so the bootstrap interval
        would be empty: there it is Wilson's interval, over documents."""
        right, among = np.asarray(right, np.float64), np.asarray(among, np.float64)
        documents = (self.by_document(among) > 0).sum(0)
        figures = self.means(right * among, among)
        return [
            Figure(f.value, *wilson(f.value, int(n)), f.mentions) if f.value in (0.0, 1.0) else f
            for f, n in zip(figures, documents, strict=True)
        ]

    def means(self, values: npt.ArrayLike, among: npt.ArrayLike) -> list[Figure]:
        """For each column, the sum of `values` over the number of mentions `among`."""
        among = np.asarray(among, np.float64)
        sums = self.sums(np.concatenate([np.asarray(values, np.float64), among], axis=1))
        top, bottom = np.split(sums, 2, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = top / bottom
        return [self.figure(ratios[:, i], int(bottom[0, i])) for i in range(ratios.shape[1])]

    def figure(self, values: Numbers, mentions: int) -> Figure:
        """A figure from `values` [1 + draws]: over all documents, then over each resample; nan for a resample
        without such mentions."""
        drawn = values[1:][~np.isnan(values[1:])]
        value = float(values[0])
        if math.isnan(value) or self.count < 2 or not len(drawn):
            return Figure(value, math.nan, math.nan, mentions)
        low, high = np.quantile(drawn, [0.025, 0.975])
        return Figure(value, float(low), float(high), mentions)


@lru_cache(maxsize=16)  # at most 8 MB each: all figures of one run use the same
def _drawn(count: int, height: int, seed: tuple[int, int]) -> npt.NDArray[np.uint16]:
    """How often each of `count` documents is drawn in each of `height` resamples: [height, count]."""
    drawn = np.random.default_rng(seed).integers(0, count, (height, count), np.int64)
    drawn += count * np.arange(height)[:, None]
    return np.bincount(drawn.ravel(), minlength=height * count).reshape(height, count).astype(np.uint16)


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share observed on `count` documents."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # Where the share is 0 or 1, one end is the share itself, which rounding may miss.
    return 0.0 if share == 0 else max(0.0, middle - half), 1.0 if share == 1 else min(1.0, middle + half)
