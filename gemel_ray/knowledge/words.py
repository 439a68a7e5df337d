"""Which of many short texts hold all words of another: by a list of rows for every word."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
_WORD = re.compile(r"\w+")


class Words:
    """Of texts, by their rows. Words are compared without regard to case."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._number: dict[str, int] = {}
        numbers, rows = array("q"), array("q")
        for row, text in enumerate(texts):
            for word in _words(text):
                numbers.append(self._number.setdefault(word, len(self._number)))
                rows.append(row)
        which = np.array(numbers, np.int64)
        self._rows = np.array(rows, np.int64)[np.argsort(which, kind="stable")]
        self._start = np.concatenate([[0], np.cumsum(np.bincount(which, minlength=len(self._number)))])

    def held(self, text: str, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of `rows` hold all words of `text`; none where it has no word."""
        numbers = [self._number.get(word) for word in _words(text)]
        found = np.full(len(rows), bool(numbers))
        for number in numbers:
            if number is None:
                return np.zeros(len(rows), np.bool_)
            found &= _among(rows, self._rows[self._start[number] : self._start[number + 1]])
        return found


def _among(rows: Rows, known: Rows) -> npt.NDArray[np.bool_]:
    """Which of `rows` are among the rising `known`, of which there are some."""
    at = np.searchsorted(known, rows)
    return known[np.minimum(at, len(known) - 1)] == rows


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))
