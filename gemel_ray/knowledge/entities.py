"""The knowledge base's entities: identifiers, names and what else is known, memory-mapped.

Row i here is name i of the prefix tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gemel_ray.knowledge import mimic_entities
from gemel_ray.readers.containers import json_rows
from gemel_ray.readers.fields import BadRecord

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("name", pa.string()),
        pa.field("description", pa.string()),
        pa.field("aliases", pa.list_(pa.string())),
        pa.field("popularity", pa.float64()),
        pa.field("image", pa.string()),
    ]
)
_BATCH = 65_536


class Entities:
    """A read-only view of the table that `write` made."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._id, self._name = table["id"], table["name"]

    @classmethod
    def open(cls, path: Path) -> Entities:
        """Map the file; rows are read when they are asked for."""
        return cls(pa.ipc.open_file(pa.memory_map(str(path))).read_all())

    def __len__(self) -> int:
        return len(self.table)

    def of(self, rows: Iterable[int] | npt.NDArray[np.int32]) -> list[tuple[str, str]]:
        """(id, name) of the entities in `rows`."""
        return [(self._id[int(row)].as_py(), self._name[int(row)].as_py()) for row in rows]

    def names(self) -> Iterator[str]:
        """All names, in the order of the rows."""
        for chunk in self._name.chunks:
            yield from chunk.to_pylist()

    def rows(self) -> Iterator[dict[str, Any]]:
        """All entities with all that is known of them, in order."""
        for batch in self.table.to_batches():
            yield from batch.to_pylist()

    def pairs(self) -> Iterator[tuple[str, str]]:
        """All (id, name), in the order of the rows."""
        for batch in self.table.select(["id", "name"]).to_batches():
            yield from zip(batch["id"].to_pylist(), batch["name"].to_pylist(), strict=True)

    def surface_forms(self) -> Iterator[str]:
        """All names and aliases, repeated as they come."""
        yield from self.names()
        for chunk in self.table["aliases"].chunks:
            yield from (alias for alias in chunk.flatten().to_pylist() if alias)


def write(rows: Iterable[dict[str, Any]], path: Path) -> Entities:
    """Write entities to `path` in batches and open them."""
    with pa.ipc.new_file(str(path), SCHEMA) as file:
        batch: list[dict[str, Any]] = []
        for row in rows:
            batch.append(row)
            if len(batch) == _BATCH:
                file.write_table(pa.Table.from_pylist(batch, SCHEMA))
                batch = []
        if batch:
            file.write_table(pa.Table.from_pylist(batch, SCHEMA))
    return Entities.open(path)


def save(table: pa.Table, path: Path) -> Entities:
    """Write a table of entities to `path` and open it."""
    with pa.ipc.new_file(str(path), SCHEMA) as file:
        file.write_table(table, max_chunksize=_BATCH)
    return Entities.open(path)


def read(
    address: str, rejects: list[str], refusal: Callable[[str], str | None] = lambda name: None
) -> Iterator[dict[str, Any]]:
    """Entities of a JSON file, one a line (or one document, as MIMIC's kb_entity.json). What is none, or has
    a name that `refusal` gives a reason against, is told in `rejects`, and the next is read."""
    for number, raw in json_rows(address):
        try:
            if isinstance(raw, BadRecord):
                raise raw
            made = entity(mimic_entities.renamed(raw) if mimic_entities.fits(raw) else raw)
            if reason := refusal(made["name"]):
                raise ValueError(reason)
            yield made
        except ValueError as fault:
            rejects.append(f"{address}:{number}: {fault}")


def entity(raw: Any) -> dict[str, Any]:
    """An entity as it is kept. ValueError says what is wrong with it."""
    if not isinstance(raw, dict):
        raise ValueError("not a JSON object")
    identity, name = raw.get("id"), raw.get("name")
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        raise ValueError("an entity needs an id")
    if not isinstance(name, str) or not name.strip():
        raise ValueError("an entity needs a name")
    name = " ".join(name.split())  # a line break inside a name would end it for the language model
    f"{identity}{name}".encode()  # refuses half surrogate pairs, which JSON can spell (UnicodeError)
    aliases, popularity = raw.get("aliases"), raw.get("popularity")
    return {
        "id": str(identity),
        "name": name,
        "description": _text(raw.get("description")),
        "aliases": [a for a in aliases if _text(a)] if isinstance(aliases, list) else [],
        "popularity": float(popularity) if isinstance(popularity, int | float) else None,
        "image": _text(raw.get("image")),
    }


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
