"""Strings as the ranking compares them, without case, accents, punctuation and endings; and their years."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

_SEPARATORS = re.compile(r"[\W_]+")
_ENDINGS = ("ing", "ers", "er", "ed", "es", "s", "n", "an", "ian")
_FUNCTION_WORDS = {
    "the", "of", "and", "in", "a", "to", "at", "on", "for", "with", "by", "from", "de", "la", "le",
    "van", "von", "der", "das", "du", "des", "di", "da", "el",
}  # fmt: skip
_YEAR = re.compile(r"(?<!\d)(?:1\d{3}|20[0-2]\d)(?!\d)")
_GROWN, _PRIME, _SPAN = 12, 40, 50.0  # of a life, in years; what others last is about as long
_LATE = 2  # years after the end: people are still mentioned shortly after their death
UNKNOWN = (0.0, 0.0, 0.0, 0.0)


def folded(text: str) -> str:
    """The text in lower case, without accents, its words separated by one space."""
    if not text.isascii():  # an ASCII text has no accents
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return _SEPARATORS.sub(" ", text).strip().casefold()


@lru_cache(maxsize=10_000)  # the names of the same candidates come again and again
def trigrams(form: str) -> frozenset[str]:
    """The trigrams of a folded form, its ends marked by spaces."""
    padded = f" {form} "
    return frozenset(map("".join, zip(padded, padded[1:], padded[2:], strict=False)))


def likeness(one: frozenset[str], other: frozenset[str]) -> float:
    """Dice's coefficient, 0 to 1."""
    return 2 * len(one & other) / (len(one) + len(other) or 1)


def initials(name: str) -> set[str]:
    """The initials of a name of several words, folded: with its function words and without, a hyphenated word
    as one and as several."""
    forms = [folded(form).split() for form in {name, name.replace("-", "")}]
    forms += [[word for word in words if word not in _FUNCTION_WORDS] for words in forms]
    return {"".join(word[0] for word in words) for words in forms if len(words) > 1}


def against_names(
    mention: str,
    words: list[str],
    all_of: set[str],
    grams: frozenset[str],
    name: str,
    aliases: list[str],
    shared: float,
) -> list[float]:
    """Features of a mention compared with an entity's name and aliases, all folded."""
    parts = name.split()
    return [
        name == mention,
        mention in aliases,
        all_of <= set(parts),
        any(all_of <= set(alias.split()) for alias in aliases),
        shared,
        likeness(grams, trigrams(name)),
        max((likeness(grams, trigrams(alias)) for alias in aliases), default=0.0),
        parts[-1:] == words[-1:],
        parts[:1] == words[:1],
        name.startswith(mention),
    ]


def content_words(form: str) -> set[str]:
    """The words of a folded text, without function words."""
    return {word for word in form.split() if word not in _FUNCTION_WORDS}


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """A word without a common English ending: painter and painters, Bavaria and Bavarian are one."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word.removesuffix(ending)
    return word


def stems(form: str) -> set[str]:
    """The stems of the content words of a folded text."""
    return {stem(word) for word in form.split() if len(word) > 2 and word not in _FUNCTION_WORDS}


def years(text: str) -> list[int]:
    """The years from 1000 to 2029 in the text, in their order."""
    return [int(year) for year in _YEAR.findall(text)]


def compared(text: Sequence[int], about: Sequence[int]) -> tuple[float, float, float, float]:
    """Features of the years of a text compared with those of a description: somebody who was dead by then is
    not in the picture. Whether both have years; whether the text's earliest is after the beginning, which is
    the description's first year, and before the end, which is its second; and its distance from the
    middle."""
    if not text or not about:
        return UNKNOWN
    year, began, ended = min(text), about[0], about[1] if len(about) > 1 else None
    within = year >= began + _GROWN and (ended is None or year <= ended + _LATE)
    return 1.0, float(year >= began), float(within), min(abs(year - began - _PRIME) / _SPAN, 3.0)
