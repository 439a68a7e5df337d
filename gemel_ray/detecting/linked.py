"""How often an occurrence of a name is a mention: estimated from texts whose mentions are known.

Most occurrences of a name that is also an ordinary word (Orange, Apple, It) are not mentions. The share of
the texts with the name in which it is a mention is its link probability (Mihalcea and Csomai, CIKM 2007,
"keyphraseness"; Milne and Witten, CIKM 2008).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from gemel_ray.detecting.names import Names
from gemel_ray.readers.fields import Span, normal

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
        names, seen, linked = Names(forms), Counter[str](), Counter[str]()
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
