"""Tables of documents: rows and columns around cells that are mentions, as one text.

    {"text": "Winners", "table": {"columns": ["year", "player"], "rows": [["1998", "Henry"]]},
     "mentions": [{"row": 0, "column": "player"}]}

`table` may also be a list of objects, a row each, a text (CSV with its header, or JSON), or in a file of
documents the path of such a file. Rows are counted from 0 below the header; a column is named, or counted
from 0. Each row becomes a line of the document's text,
`year: 1998; player: Henry`, so that prompt and vectors contain what is beside a mention.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemel_ray.readers.delimited import SEPARATORS
from gemel_ray.readers.fields import BadRecord, first_line, normal, short, valid_text
from gemel_ray.readers.mentions import mentions
from gemel_ray.readers.opening import PACKED, decoded, opened
from gemel_ray.readers.pictures import SourceFile
from gemel_ray.records import Row

FIELD = "table"
_ROWS = 24  # of a longer table, rows with mentions come first, then the first others
_WIDEST = 256  # columns
_FILE = 16 * 2**20  # bytes
_FILES = tuple(f"{kind}{packed}" for kind in (".csv", ".tsv", ".json") for packed in PACKED)


@dataclass(frozen=True)
class Table:
    """Column names and rows of cells; an empty cell is ""."""

    columns: list[str]
    rows: list[list[str]]

    def lines(self, wanted: Sequence[int]) -> Iterator[tuple[str, list[tuple[int, int]]]]:
        """The text of each of these rows, and the place of each cell in it."""
        for row in wanted:
            line, places = "", []
            for name, cell in zip(self.columns, self.rows[row], strict=True):
                before = f"{'; ' if line else ''}{name}: " if cell else ""
                places.append((len(line) + len(before), len(line) + len(before) + len(cell)))
                line += f"{before}{cell}"
            yield line, places


def text_with_table(text: str, table: Any, given: Any) -> tuple[str, list[Row] | None]:
    """The text of a document with a table, and its mentions, some of which may be cells. Raises BadRecord
    for a table that cannot be understood."""
    made = _table(table)
    raws = given if isinstance(given, list) else []
    cells = [_cell(made, one) for one in raws]
    named = {cell[0] for cell in cells if isinstance(cell, tuple)}
    first = [row for row in range(len(made.rows)) if row not in named][: max(0, _ROWS - len(named))]
    wanted = sorted({*named, *first})
    whole, places = text.rstrip(), {}
    for row, (line, cell_places) in zip(wanted, made.lines(wanted), strict=True):
        whole += f"\n{line}" if whole else line
        places[row] = [(len(whole) - len(line) + a, len(whole) - len(line) + b) for a, b in cell_places]
    if not isinstance(given, list):
        return whole, None
    placed = [_placed(one, cell, places, whole) for one, cell in zip(raws, cells, strict=True)]
    found = mentions(placed, whole)
    for mention, cell in zip(found, cells, strict=True):
        if isinstance(cell, tuple) and not mention["error"]:
            mention["mention_id"] = f"{cell[0]}/{made.columns[cell[1]]}"
    return whole, found


def in_file(value: Any, at: SourceFile) -> Any:
    """What the file holds that `value` names, whole; any other value as it is. Raises BadRecord."""
    if not isinstance(value, str) or "\n" in value or not value.strip().lower().endswith(_FILES):
        return value
    address = at.address_of(value)
    if address.lower().startswith(("http://", "https://")):
        raise BadRecord(f"a table's file is a path or a store's address, not {short(value)}")
    try:
        with opened(address) as file:
            data = file.read(_FILE + 1)
    except Exception as fault:
        raise BadRecord(f"cannot read the table {short(value)}: {first_line(fault)}") from fault
    if len(data) > _FILE:
        raise BadRecord(f"the table {short(value)} has more than {_FILE:,} bytes")
    return _spelled(decoded(data), "\t" if ".tsv" in address.lower()[-8:] else None)


def row_of(table: Any) -> str:
    """A table as one line, for a description. Raises BadRecord."""
    made = _table(table)
    return "; ".join(line for line, _ in made.lines(range(min(_ROWS, len(made.rows)))) if line)


def _table(value: Any) -> Table:
    if isinstance(value, str):
        value = _spelled(value)
    if isinstance(value, dict) and ("rows" in value or "columns" in value):
        columns, rows = value.get("columns"), value.get("rows")
        if not isinstance(columns, list) or not isinstance(rows, list):
            raise BadRecord("a table has columns, a list of names, and rows, a list of lists of cells")
    elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        columns = list(dict.fromkeys(name for row in value for name in row))
        rows = [[row.get(name) for name in columns] for row in value]
    elif isinstance(value, dict) and value:
        columns, rows = list(value), [list(value.values())]
    else:
        raise BadRecord(f"a table is columns and rows, a list of objects or CSV text, not {short(value)}")
    return _checked(columns, rows)


def _checked(columns: Sequence[Any], rows: Sequence[Any]) -> Table:
    names = [_cell_text(name, "a column") for name in columns]
    if not names or not rows:
        raise BadRecord("the table has no columns" if not names else "the table has no rows")
    if len(names) > _WIDEST:
        raise BadRecord(f"the table has {len(names):,} columns; at most {_WIDEST} are read")
    if again := next((name for name in names if names.count(name) > 1), None):
        raise BadRecord(f"the table has two columns {short(again)}")
    cells = []
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(names):
            has = f"has {len(row):,} cells" if isinstance(row, list) else f"is {short(row)}"
            raise BadRecord(f"row {number} of the table {has} where it has {len(names):,} columns")
        cells.append([_cell_text(cell, f"row {number} of the table") for cell in row])
    return Table(names, cells)


def _cell_text(value: Any, where: str) -> str:
    """A cell's text, on one line. Raises BadRecord for lists and objects."""
    if value is None:
        return ""
    if isinstance(value, (list, dict)):
        raise BadRecord(f"{where}: a cell is a text or a number, not {short(value)}")
    return normal(valid_text(value, where)) if isinstance(value, str) else str(value)


def _spelled(text: str, separator: str | None = ",") -> Any:
    """A table as text: JSON or CSV. `separator` None: as the header looks."""
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as fault:
            raise BadRecord(f"the table is neither JSON nor CSV: {short(text)}") from fault
    try:
        first = text.lstrip().partition("\n")[0]
        separator = separator or max(SEPARATORS, key=first.count)
        header, *rows = (row for row in csv.reader(io.StringIO(text), delimiter=separator) if row)
    except (csv.Error, ValueError) as fault:
        raise BadRecord(f"the table is neither JSON nor CSV: {short(text)}") from fault
    return {"columns": header, "rows": rows}


def _cell(table: Table, raw: Any) -> tuple[int, int] | BadRecord | None:
    """The row and column of a mention that is a cell; None: it is not a cell."""
    if not isinstance(raw, Mapping) or ("row" not in raw and "column" not in raw):
        return None
    row, column = raw.get("row"), raw.get("column")
    if isinstance(column, str) and column in table.columns:
        column = table.columns.index(column)
    if not _within(row, len(table.rows)):
        return BadRecord(f"there is no row {short(row)} in the table: it has {len(table.rows):,}, from 0")
    if not _within(column, len(table.columns)):
        shown = ", ".join(table.columns[:8])
        return BadRecord(f"there is no column {short(column)} in the table: it has {shown}")
    assert isinstance(row, int)
    assert isinstance(column, int)
    return row, column


def _within(number: Any, count: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < count


def _placed(
    raw: Any, cell: tuple[int, int] | BadRecord | None, places: Mapping[int, list[tuple[int, int]]], text: str
) -> Any:
    """A mention with its place in the text, as mentions.py reads it."""
    if not isinstance(cell, tuple):
        return cell or raw
    start, end = places[cell[0]][cell[1]]
    words = raw.get("mention")
    known = {name: value for name, value in raw.items() if name not in ("row", "column", "mention")}
    if isinstance(words, str) and words.strip():
        at = text.find(normal(words), start, end)
        if at < 0:
            return BadRecord(f"the mention {short(words)} is not in its cell {short(text[start:end])}")
        start, end = at, at + len(normal(words))
    if start == end:
        return BadRecord(f"the cell in row {raw['row']}, column {raw['column']}, is empty")
    return known | {"start": start, "end": end}
