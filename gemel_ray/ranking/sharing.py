"""Which of many short texts hold all words of another."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from gemel_ray.ranking.postings import PAIR, Postings
from gemel_ray.ranking.words import key

Rows = npt.NDArray[np.int64]
_WORD = re.compile(r"\w+")


class Words:
    """Of texts, by their rows. Words are compared without regard to case."""

    def __init__(self, texts: Iterable[str]) -> None:
        pairs = ((key(word), row) for row, text in enumerate(texts) for word in _words(text))
        self._index = Postings.made(np.fromiter(pairs, PAIR))

    def held(self, text: str, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of `rows` hold all words of `text`; none where it has no word."""
        words = _words(text)
        found = np.full(len(rows), bool(words))
        for word in words:
            found &= _among(rows, self._index.of(key(word)))
        return found


def _among(rows: Rows, known: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Which of `rows` are among the rising `known`."""
    if not len(known):
        return np.zeros(len(rows), np.bool_)
    at = np.searchsorted(known, rows)
    return known[np.minimum(at, len(known) - 1)] == rows


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))
