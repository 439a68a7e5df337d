"""Hashes of texts, for indexes: 64 bits that are the same on every machine.

And the words of the bank's mentions as such hashes, in flat, memory-mapped arrays: which mentions have all
words of one?
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt


def hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


@lru_cache(maxsize=100_000)
def key(word: str) -> int:
    """The hash of a word or a name: these come again and again."""
    return hashed(word)


_FILES = ("words", "word_starts")
_BATCH = 65_536


class MentionWords:
    """The words of text i, hashed, are `words[starts[i] : starts[i + 1]]`, uint64; `starts` int64."""

    def __init__(self, words: npt.NDArray[np.uint64], starts: npt.NDArray[np.int64]) -> None:
        self._words, self._starts = words, starts

    @classmethod
    def of(cls, texts: Iterable[str]) -> MentionWords:
        """The words of these texts, in memory."""
        every, parts, lengths = iter(texts), [np.empty(0, np.uint64)], [np.zeros(1, np.int64)]
        while some := [_words(text) for text in islice(every, _BATCH)]:
            lengths.append(np.fromiter(map(len, some), np.int64, len(some)))
            parts.append(np.fromiter(chain.from_iterable(some), np.uint64, int(lengths[-1].sum())))
        return cls(np.concatenate(parts), np.cumsum(np.concatenate(lengths)))

    @classmethod
    def open(cls, folder: Path) -> MentionWords | None:
        """Map what `save` wrote; None if it is not there."""
        files = [folder / f"{name}.npy" for name in _FILES]
        if not files[0].exists():
            return None
        return cls(*(np.asarray(np.load(file, mmap_mode="r")) for file in files))

    def save(self, folder: Path) -> None:
        for name, array in zip(_FILES, (self._words, self._starts), strict=True):
            np.save(folder / f"{name}.npy", array)

    def with_all(self, text: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of `rows` have all words of `text`, ignoring case; none if it has no word."""
        wanted = np.array(_words(text), np.uint64)
        if not len(wanted) or not len(self._words):
            return np.zeros(len(rows), np.bool_)
        first = self._starts[rows]
        count = self._starts[rows + 1] - first
        whose = np.repeat(np.arange(len(rows)), count)
        place = np.arange(len(whose)) + np.repeat(first + count - np.cumsum(count), count)
        shared = np.isin(self._words[place], wanted)
        return np.bincount(whose[shared], minlength=len(rows)) == len(wanted)


def _words(text: str) -> list[int]:
    return sorted(map(key, set(re.findall(r"\w+", text.casefold()))))
