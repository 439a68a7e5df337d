"""Files of triples, read as a stream: JSON lines, or TSV and CSV with a header or with three columns that are
head, relation and tail. Packed or not. Invalid rows are reported with file, line and reason.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from gemel_ray.errors import Mistake
from gemel_ray.knowledge.entities import Entities, Reject, Rejects
from gemel_ray.knowledge.entity_files import TABLES, kind, texts, whole
from gemel_ray.ranking import triples
from gemel_ray.ranking.triples import Triple
from gemel_ray.readers.fields import BadRecord, Numbered, identity, is_unicode, normal, short
from gemel_ray.readers.json_files import json_rows
from gemel_ray.readers.opening import opened

FIELDS = {  # in our words, and the other names of each
    "head": ("head", "h", "subject"),
    "relation": ("relation_label", "pl", "predicate_label", "relation", "p", "predicate", "property"),
    "tail": ("tail", "t", "object"),
    "label": ("tail_label", "tl", "object_label"),
}


def read(address: str, reject: Reject) -> Iterator[Triple]:
    """The triples of a file. Raises ValueError for one that cannot be read to its end."""
    separator = TABLES.get(kind(address))
    rows = _table(address, separator) if separator else json_rows(address)
    for number, raw in whole(address, rows):
        try:
            yield _triple(raw)
        except Mistake as fault:
            reject(f"{address}:{number}: {fault}")


def index(address: str, entities: Entities, folder: Path, rejects: Rejects) -> str:
    """Write the triples of a file for the ranking in `folder`. Returns what came of it, in words. Raises
    Mistake where there is none."""
    began, before = time.perf_counter(), rejects.count
    count = triples.write(read(address, rejects), entities.pairs(), folder)
    left = rejects.count - before
    if not count:
        why = rejects.first[-1] if left else "the file is empty"
        raise Mistake(f"{address} holds no triple: {why}")
    beside = f", {left:,} left out" if left else ""
    return f"{count:,} triples{beside}, {time.perf_counter() - began:.1f} s"


def _triple(raw: Any) -> Triple:
    if isinstance(raw, BadRecord):
        raise raw
    if isinstance(raw, list) and len(raw) == 3:
        raw = dict(zip(("head", "relation", "tail"), raw, strict=True))
    if not isinstance(raw, dict):
        raise Mistake(f"a triple is an object with head, relation and tail, not {short(raw)}")
    found = {ours: next((raw[n] for n in names if raw.get(n)), None) for ours, names in FIELDS.items()}
    head, tail = identity(found["head"]), identity(found["tail"])
    relation, label = _text(found["relation"]), _text(found["label"])
    if head is None:
        raise Mistake(f"a triple needs a head, an entity's id: {short(raw)}")
    if relation is None:
        raise Mistake(f"a triple needs a relation, as text: {short(raw)}")
    if tail is None and label is None:
        raise Mistake(f"a triple needs a tail, an id or its label: {short(raw)}")
    return Triple(head, relation, tail, label)


def _text(value: Any) -> str | None:
    text = identity(value)
    return normal(text) or None if text and is_unicode(text) else None


def _table(address: str, separator: str) -> Iterator[Numbered]:
    with opened(address) as file:
        rows = csv.reader(
            texts(file), delimiter=separator, quoting=csv.QUOTE_NONE if separator == "\t" else 0
        )
        first = next(rows, [])
        header = _header(first)
        given = rows if header else chain([first], rows)
        for row in given:
            if row:
                yield rows.line_num, _row(header or ["head", "relation", "tail"], row)


def _header(first: Sequence[str]) -> list[str] | None:
    """The columns' names, where the first line has them."""
    names = [name.strip().lower() for name in first]
    known = [bool(set(names) & set(FIELDS[field])) for field in ("head", "relation")]
    return names if all(known) else None


def _row(header: list[str], row: list[str]) -> Any:
    if len(row) != len(header):
        return BadRecord(f"it has {len(row):,} cells where {len(header):,} are expected: {short(row)}")
    return dict(zip(header, row, strict=True))
