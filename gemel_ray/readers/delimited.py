"""Rows of CSV and TSV: the first line names the columns.

Each cell is a text; an empty one is null. `mentions`, and any other list or object, is JSON in its cell, or a
Python literal, as pandas writes; places are numbers. The comma may be a semicolon, a tab or a bar. A file of
two columns without a header, one of them URLs, is read as captions with the URLs of their pictures, as in
Conceptual Captions.
"""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from gemel_ray.readers.fields import TEXTS, BadRecord, Numbered, may_be_read, short
from gemel_ray.readers.opening import PACKED, lines, opened

TABLES = tuple(kind + packed for kind in (".csv", ".tsv") for packed in PACKED)
SEPARATORS = ",;\t|"
_NUMBERS = ("start", "end")
_WEB = ("http://", "https://")
_PROSE = set(TEXTS) - {"captions", "sentences"}  # a caption may begin with a bracket
csv.field_size_limit(2**31 - 1)  # pictures in base64


def table_rows(address: str) -> Iterator[Numbered]:
    """The rows, numbered from 1 below the header."""
    with opened(address) as file:
        texts = (t.decode("utf-8", "surrogateescape") if isinstance(t, bytes) else t for t in lines(file))
        first = next(texts, "")
        if not first.strip():
            return
        separator = "\t" if ".tsv" in address.lower()[-8:] else max(SEPARATORS, key=first.count)
        names = next(csv.reader([first], delimiter=separator), [])
        bare = _names_of_pairs(names)
        if not bare and not any(map(may_be_read, _header(names))):
            shown = ", ".join(f"{name:.40}" for name in names[:8])
            yield (
                1,
                BadRecord(f"the first line names no column such as text or caption, but {shown}"),
            )
            return
        read = _Lines(chain([first], texts))  # a header may span lines
        cells = csv.reader(read, delimiter=separator, quoting=csv.QUOTE_NONE if bare else csv.QUOTE_MINIMAL)
        header = bare or _header(next(cells))
        read.taken.clear()
        for number, row in enumerate((row for row in cells if row), 1):
            wrong = read.unclosed(separator, row)
            yield number, BadRecord(wrong) if wrong else _row(header, row)


def _header(names: list[str]) -> list[str]:
    """The columns' names. `Mention` and `ENTITY` are the fields that are called so in small letters, unless a
    form reads them as they are."""
    found = [name.strip() for name in names]

    def meant(name: str) -> str:
        small = name.lower()
        return small if not may_be_read(name) and may_be_read(small) and small not in found else name

    return list(map(meant, found))


class _Lines:
    """The lines of a table for csv, which takes several for a row whose cells have line breaks."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.lines, self.taken = lines, list[str]()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.taken.append(next(self.lines))
        return self.taken[-1]

    def unclosed(self, separator: str, row: list[str]) -> str | None:
        """The error of a row with an unclosed quote, which takes all lines to the next quote or to the end;
        None if there is none."""
        taken, self.taken = self.taken, []
        if len(taken) == 1:
            return None
        odd = sum(line.count('"') for line in taken) % 2
        swallowed = separator == "\t" and any("\n" in cell and "\t" in cell for cell in row)
        if not odd and not swallowed:
            return None
        shown = short(taken[0].strip())
        return f"a quote in it is not closed, and took {len(taken):,} lines: {shown}; write it twice"


def _names_of_pairs(first: list[str]) -> list[str]:
    """The columns of a file without a header that begins with a caption and a URL, in either order."""
    web = [cell.strip().lower().startswith(_WEB) for cell in first]
    if len(first) != 2 or sum(web) != 1:
        return []
    return ["url", "caption"] if web[0] else ["caption", "url"]


def _row(header: list[str], row: list[str]) -> Any:
    while len(row) > len(header) and not row[-1]:
        row.pop()
    if len(row) != len(header):
        shown = ", ".join(f"{cell!r:.30}" for cell in row[:4])
        return BadRecord(f"it has {len(row):,} cells where the header has {len(header):,}: {shown}")
    return {name: _cell(name, cell) for name, cell in zip(header, row, strict=True)}


def _cell(name: str, cell: str) -> Any:
    if not cell:
        return None
    if name in _NUMBERS:
        return int(cell) if cell.strip().lstrip("-").isdecimal() and len(cell) < 12 else cell
    if cell[0] not in "[{" or name in _PROSE:
        return cell
    for spelled in (json.loads, ast.literal_eval):
        try:
            return spelled(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return cell
