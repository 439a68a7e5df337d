"""The knowledge base's entities: identifiers, names and what else is known, memory-mapped.

Row i here is name i of the prefix tree.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NotRequired, TypedDict
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gemel_ray.knowledge.columns import values
from gemel_ray.readers.fields import normal, short
from gemel_ray.records import Row

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("name", pa.string()),
        pa.field("description", pa.string()),
        pa.field("aliases", pa.list_(pa.string())),
        pa.field("popularity", pa.float64()),
        pa.field("image", pa.string()),
        pa.field("types", pa.list_(pa.string())),  # ids of the classes it is an instance of
    ]
)
_BATCH = 65_536
Rows = npt.NDArray[np.int64]


class Entity(TypedDict):
    """A row of the table; `line`: in the file from which it was read. A table of GEMEL's files, of which
    only names are used, may lack ids."""

    id: str
    name: str
    description: str | None
    aliases: list[str] | None
    popularity: float | None
    image: str | None
    types: list[str] | None
    line: NotRequired[int]


@dataclass(frozen=True)
class EntityChanges:
    """How a version's entities follow from the former version's: its rows that are `gone`, and those that are
    `aliased`, with more aliases, both ascending. The others stay as they are and in their order; new ones
    come last."""

    gone: Rows
    aliased: Rows

    def kept(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Which of the former rows from `start` to `stop` are not gone."""
        kept = np.ones(stop - start, np.bool_)
        first, end = np.searchsorted(self.gone, (start, stop))
        kept[self.gone[first:end] - start] = False
        return kept

    def staying(self, table: pa.Table) -> pa.Table:
        """The former table without the rows that are gone. Only batches that have some are copied."""
        batches, start = [], 0
        for batch in table.to_batches():
            kept = self.kept(start, start + len(batch))
            batches.append(batch if kept.all() else batch.filter(pa.array(kept)))
            start += len(batch)
        return pa.Table.from_batches(batches, table.schema)

    def now(self, rows: npt.NDArray[np.integer]) -> Rows:
        """The rows of the new version where these former rows, which are not gone, are now."""
        return np.asarray(rows - np.searchsorted(self.gone, rows))


class Entities:
    """A read-only view of the table that `write` made."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._id, self._name = table["id"], table["name"]

    @classmethod
    def open(cls, path: Path) -> Entities:
        """Map the file; rows are read on access."""
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        for field in SCHEMA:  # a workspace of an earlier version may lack the last
            if field.name not in table.column_names:
                table = table.append_column(field, pa.nulls(len(table), field.type))
        return cls(table)

    def __len__(self) -> int:
        return len(self.table)

    def of(self, rows: Iterable[int] | npt.NDArray[np.int32]) -> list[tuple[str, str]]:
        """(id, name) of the entities in `rows`."""
        return [(self._id[int(row)].as_py(), self._name[int(row)].as_py()) for row in rows]

    def at(self, rows: Rows) -> pa.Table:
        """The table's rows in these places."""
        # A take from many batches copies the whole table.
        return pa.concat_tables([self.table.slice(0, 0), *(self.table.slice(r, 1) for r in rows.tolist())])

    def names(self) -> Iterator[str]:
        """All names, in the order of the rows."""
        return values(self._name)

    def rows(self) -> Iterator[Entity]:
        """All entities with all their fields, in order."""
        for batch in self.table.to_batches():
            yield from batch.to_pylist()

    def pairs(self) -> Iterator[tuple[str, str]]:
        """All (id, name), in the order of the rows."""
        for batch in self.table.select(["id", "name"]).to_batches():
            yield from zip(batch["id"].to_pylist(), batch["name"].to_pylist(), strict=True)

    def surface_forms(self) -> Iterator[str]:
        """All names and aliases, with repetitions."""
        yield from self.names()
        yield from (alias for aliases in values(self.table["aliases"]) for alias in aliases or () if alias)


def write(rows: Iterable[Entity | Row], path: Path, reject: Reject | None = None) -> Entities:
    """Write entities to `path` in batches and open them. With `reject`, the first of several with one id is
    kept, and `reject` receives the others, by their `line`."""
    lines = array("Q")
    with pa.ipc.new_file(str(path), SCHEMA) as file:
        batch: list[Entity | Row] = []
        for row in rows:
            batch.append(row)
            lines.append(row.get("line", 0))
            if len(batch) == _BATCH:
                file.write_table(pa.Table.from_pylist(batch, SCHEMA))
                batch = []
        if batch:
            file.write_table(pa.Table.from_pylist(batch, SCHEMA))
    made = Entities.open(path)
    again = _repeated(made.table["id"]) if reject else {}
    if not again or not reject:
        return made
    for later, first in again.items():
        (identity, name), (_, kept) = made.of([later, first])
        reject(
            f"{lines[later]}: the id {short(identity)} of {short(name)} is that of {short(kept)} (line "
            f"{lines[first]}), which is kept; other names of an entity are its aliases"
        )
    return _without(made.table, list(again), path)


def _repeated(ids: pa.ChunkedArray) -> dict[int, int]:
    """Rows whose id an earlier row has, and the first such row. Takes 16 bytes per entity."""
    keys = np.fromiter(map(hash, values(ids)), np.int64, len(ids))
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order][1:] == keys[order][:-1]) + 1
    found: dict[int, int] = {}
    firsts: dict[str, int] = {}
    for place in same.tolist():
        before, row = int(order[place - 1]), int(order[place])
        identity = ids[row].as_py()
        if identity is not None and ids[before].as_py() == identity:
            found[row] = firsts.setdefault(identity, before)
    return dict(sorted(found.items()))


def _without(table: pa.Table, rows: list[int], path: Path) -> Entities:
    kept = np.ones(len(table), bool)
    kept[rows] = False
    aside, done = path.with_suffix(".unique"), 0
    with pa.ipc.new_file(str(aside), SCHEMA) as file:
        for batch in table.select(SCHEMA.names).to_batches():
            file.write_batch(batch.filter(pa.array(kept[done : done + len(batch)])))
            done += len(batch)
    aside.replace(path)
    return Entities.open(path)


def replaced(table: pa.Table, places: Rows, rows: pa.Table) -> pa.Table:
    """The table with other `rows` in some places, which ascend."""
    parts, done = [], 0
    for number, place in enumerate(places.tolist()):
        parts += [table.slice(done, place - done), rows.slice(number, 1)]
        done = place + 1
    return pa.concat_tables([*parts, table.slice(done)])


def save(table: pa.Table, path: Path) -> Entities:
    """Write a table of entities to `path`, batch by batch, and open it."""
    with pa.ipc.new_file(str(path), SCHEMA) as file:
        for start in range(0, len(table), _BATCH):
            file.write_table(compact(table.slice(start, _BATCH)))
    return Entities.open(path)


def compact(rows: pa.Table) -> pa.Table:
    """The rows in one chunk with buffers of its own. Those of a slice end with bits of other rows, and equal
    knowledge would have other bytes, and so another version."""
    return rows.combine_chunks().take(pa.array(np.arange(len(rows))))


# What was left out, and why: the first reasons, and how many there were.


SHOWN = 10
Reject = Callable[[str], None]  # receives where and why


class Rejects:
    """Collects reasons: counts all and keeps the first."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.count = 0

    def __call__(self, reason: str) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(reason)

    def lines(self, what: str) -> list[str]:
        """Lines for people: the first reasons, and the number of the others."""
        more = self.count - len(self.first)
        return [f"{what}: {reason}" for reason in self.first] + (
            [f"... and {more:,} more {what}"] if more else []
        )


# The name in the knowledge base of a gold mention's entity, where the data set has an id or another name.
#
# Names are what the language model writes and what is compared. WikiMEL's and MIMIC's files have the Wikidata
# id, and may spell the name differently from the knowledge base; others have nothing but an id.


class _Places:
    """The places of texts in a column, by their hashes: a set takes ten times as much memory."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        hashes = np.fromiter(map(hash, values(column)), np.int64, len(column))
        self._places = np.argsort(hashes, kind="stable").astype(np.int32)
        self._hashes, self._column = hashes[self._places], column

    def first(self, text: str | None) -> int | None:
        """Where this text is first; None: nowhere."""
        first, end = (int(np.searchsorted(self._hashes, hash(text), side)) for side in ("left", "right"))
        return next((p for p in self._places[first:end].tolist() if self._column[p].as_py() == text), None)


class Targets:
    """Names by ids, of some entities or of (id, name) pairs, read on first use. If an id occurs twice, its
    first name counts; all names remain valid. `doubts`: how many targets were a name and also another
    entity's id."""

    def __init__(self, known: Entities | Iterable[tuple[str, str]]) -> None:
        self._known = known
        self.doubts = 0

    @cached_property
    def _columns(self) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        if isinstance(self._known, Entities):
            return self._known.table["id"], self._known.table["name"]
        pairs = list(self._known)
        ids, names = (pa.chunked_array([[p[part] for p in pairs]], pa.string()) for part in (0, 1))
        return ids, names

    @cached_property
    def _ids(self) -> _Places:
        return _Places(self._columns[0])

    @cached_property
    def _names(self) -> _Places:
        return _Places(self._columns[1])

    @cached_property
    def _loose(self) -> dict[str, str]:
        """Names by their loose spelling, where it differs."""
        return {loose: name for name in values(self._columns[1]) if (loose := _loosely(name)) != name}

    def _of(self, identity: str) -> str | None:
        """The name of this id."""
        place = self._ids.first(identity)
        return None if place is None else self._columns[1][place].as_py()

    def __contains__(self, name: str | None) -> bool:
        return name is not None and self._names.first(name) is not None

    def name(self, target: str | None, target_id: str | None) -> str | None:
        """The target, if it is a name of the knowledge base; else the name of its id; else, if the target is
        itself an id or a name in the spelling of an address, that entity's name; else the target unchanged,
        which may be None."""
        wanted = normal(target) if target else None
        if wanted is not None and wanted in self:
            self.doubts += target_id is None and self._of(wanted) not in (None, wanted)
            return wanted
        if target_id is not None and (known := self._of(target_id) or self._of(_last(target_id))):
            return known
        if not wanted:
            return target
        if (known := self._of(wanted) or self._of(_last(wanted))) is not None:
            return known
        loose = _loosely(wanted)
        return loose if loose in self else self._loose.get(loose, wanted)


def _last(identifier: str) -> str:
    """Q42 for http://www.wikidata.org/entity/Q42; 42 for 42.0, as tables with gaps write whole numbers."""
    return identifier.rpartition("/")[2] if "://" in identifier else identifier.removesuffix(".0")


def _loosely(name: str) -> str:
    """A spelling common to a page's address and its title: Mercury_(planet)."""
    if "://" in name:
        name = unquote(name.rpartition("/")[2].partition("#")[0])
    return normal(name.replace("_", " ").replace("\u2019", "'"))
