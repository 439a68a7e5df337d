"""How mentions are found in texts: by the knowledge base's names, without those that are mostly ordinary
words, or by a model that tags names."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from ahocorasick_rs import AhoCorasick, MatchKind

from gemel_ray.errors import Mistake
from gemel_ray.readers.fields import Span, compared, is_edge, normal

# Names found in texts: whole words, the longest match, in one automaton pass for any number of names.
#
# Texts and names are compared as readers/fields.py says, so that an accent, a Korean syllable, an apostrophe
# or the space between two words may be written either way. Places are in characters of the original text.


class Names:
    """Finds `forms`: with `any_case` in any case, else as they are spelled or in capitals. `searched`: the
    only texts in which they are looked for, if there are no others."""

    def __init__(
        self, forms: Iterable[str], any_case: bool = False, searched: Iterable[str] | None = None
    ) -> None:
        self._any_case = any_case
        written = (f for form in forms for f in (form, *(() if any_case else (form.upper(),))))
        shapes: Iterator[str] = (compared(normal(form), any_case)[0] for form in written)
        if searched is not None:
            shapes = filter(_Runs(compared(text, any_case)[0] for text in searched).may_have, shapes)
        self._forms = sorted({*shapes} - {""})
        self._automaton = AhoCorasick(self._forms, matchkind=MatchKind.Standard)

    def __len__(self) -> int:
        """How many different spellings are looked for."""
        return len(self._forms)

    def whole_words(self, text: str) -> Iterator[Span]:
        """All occurrences that neither begin nor end within a word, with overlapping ones."""
        shape, origin = compared(text, self._any_case)
        for _, start, end in self._automaton.find_matches_as_indexes(shape, overlapping=True):
            span = (origin[start], origin[end]) if origin else (start, end)
            if span[0] < span[1] and is_edge(text, span[0]) and is_edge(text, span[1]):
                yield span


_RUN = 4  # characters


class _Runs:
    """The runs of characters in some texts: of many names, few have no other runs. An automaton takes a
    kilobyte for each name."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._runs = {text[i : i + _RUN] for text in texts for i in range(len(text) - _RUN + 1)}

    def may_have(self, shape: str) -> bool:
        """Whether one of the texts may contain this."""
        runs = self._runs
        return all(shape[i : i + _RUN] in runs for i in range(len(shape) - _RUN + 1))


def longest(spans: Iterable[Span]) -> Iterator[Span]:
    """The leftmost of overlapping spans, and the longest of those that begin together. (The automaton's
    longest match may end within a word where a shorter one does not.)"""
    free = 0
    for start, end in sorted(set(spans), key=lambda span: (span[0], -span[1])):
        if start >= free:
            yield start, end
            free = end


def width(form: str) -> int:
    """The length; a Chinese character and the like counts twice, since two of them can be a name."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in form)


# How often an occurrence of a name is a mention: estimated from texts whose mentions are known.
#
# Most occurrences of a name that is also an ordinary word (Orange, Apple, It) are not mentions. The share of
# the texts with the name in which it is a mention is its link probability (Mihalcea and Csomai, CIKM 2007,
# "keyphraseness"; Milne and Witten, CIKM 2008).


_FILE = "surface_forms.json"
_SEEN = 5  # texts that a share needs to mean anything


class LinkStatistics:
    """Counts of names as mentions, from the demonstrations' texts."""

    def __init__(self) -> None:
        self._known: dict[str, set[Span]] = {}

    def observe(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield the DOCUMENT tables unchanged, and count. A text may be in several rows."""
        for table in tables:
            for row in table.select(["text", "given"]).to_pylist():
                spans = {(m["start"], m["end"]) for m in row["given"] or () if m["start"] is not None}
                if row["text"] and spans:
                    self._known.setdefault(row["text"], set()).update(spans)
            yield table

    def write(self, forms: Iterable[str], folder: Path) -> None:
        """Write for each frequent name the number of texts in which it is a mention, and of all its texts."""
        names = Names(forms, searched=self._known)
        seen, linked = Counter[str](), Counter[str]()
        for text, known in self._known.items():
            found: dict[str, bool] = {}
            for start, end in names.whole_words(text):
                inside = any(a <= start and end <= b for a, b in known)
                form = normal(text[start:end])
                found[form] = found.get(form, False) or inside
            seen.update(found.keys())
            linked.update(form for form, inside in found.items() if inside)
        counts = {form: [linked[form], number] for form, number in seen.items() if number >= _SEEN}
        (folder / _FILE).write_text(json.dumps(counts, ensure_ascii=False))


def rarely_linked(folder: Path, least: float) -> set[str]:
    """The names of a workspace whose link probability is known and less than `least`."""
    file = folder / _FILE
    counts: Mapping[str, tuple[int, int]] = json.loads(file.read_text()) if file.exists() else {}
    return {form for form, (linked, seen) in counts.items() if linked < least * seen}


# Mentions by a token-classification model of the hub or in a folder: any that tags named entities.
#
# transformers' pipeline joins tokens to words and words to spans, counts characters, and reads long texts in
# overlapping windows.


_STRIDE = 32  # tokens that two windows of a long text share


class Tagger:
    """`least`: the lowest probability of a span. Raises ValueError if there is no such model."""

    def __init__(self, model: str, device: str, batch: int, least: float) -> None:
        from transformers import pipeline

        from gemel_ray.models.encoders import torch_device

        try:
            self._tag: Any = pipeline(
                "token-classification",
                model=model,
                aggregation_strategy="first",
                stride=_STRIDE,
                device=torch_device(device),
            )
        except (OSError, ValueError) as fault:
            raise Mistake(f"detect.model {model} cannot be loaded: {fault}") from fault
        self._batch, self._least = batch, least

    def __call__(self, texts: Sequence[str]) -> list[list[Span]]:
        """The spans of each text."""
        found = self._tag(list(texts), batch_size=self._batch) if texts else []
        return [[(tag["start"], tag["end"]) for tag in tags if tag["score"] >= self._least] for tags in found]
