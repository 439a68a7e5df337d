"""Files of links and their records: written of parts, of what stays of other files, and of small ones."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gemel_ray.job import index, layout
from gemel_ray.job.identity import FAILED, LOST, Records
from gemel_ray.job.ledger import State
from gemel_ray.storage import Folder

FILE = 100_000  # documents, after which parts become a file
FEW = 8  # files of less than half of that; more than so many are put together
_GROUP = 20_000  # rows that are compressed together
Named = tuple[str, Records]


@dataclass(frozen=True)
class LinkFiles:
    """Those of before, whose records are read one by one, and those just `merged`."""

    at: Folder
    former: list[str]
    merged: Mapping[str, Records]

    def items(self, ending: str = "") -> Iterator[Named]:
        """Those whose names end so, oldest first."""
        for name in self.former:
            if name.endswith(ending) and (found := index.of_file(self.at, name)) is not None:
                yield name, found
        yield from ((name, found) for name, found in self.merged.items() if name.endswith(ending))


@dataclass
class Writing:
    """What a run writes to settle a `state`. It counts when the ledger says so."""

    at: Folder
    state: State
    number: int = 0  # of files

    def of_parts(self, parts: Mapping[str, Records]) -> Iterator[Named]:
        group, size = list[str](), 0
        for part in (*parts, None):
            if group and (part is None or size >= FILE):
                yield self._joined({name: parts[name] for name in group})
                group, size = [], 0
            if part is not None:
                group.append(part)
                size += len(parts[part])

    def without(self, files: LinkFiles, changed: Mapping[str, npt.NDArray[np.bool_]]) -> dict[str, Records]:
        """The files that lose some documents, with those that stay."""
        return dict(
            self._written(
                iter([layout.read(self.at, name).filter(pa.array(np.repeat(keep, records["rows"])))]),
                records[keep],
            )
            for name, records in (files.items() if changed else ())
            if name in changed and (keep := changed[name]).any()
        )

    def together(self, files: LinkFiles) -> tuple[dict[str, Records], list[str]]:
        """The small files as few, if they are many; and the names of those."""
        known = dict(self.state.files) | {name: len(found) for name, found in files.merged.items()}
        names = [n for n in (*files.former, *files.merged) if known[n] < FILE // 2]
        if len(names) <= FEW:
            return {}, []
        small = dict((name, found) for name, found in files.items() if name in set(names))
        written, groups = dict[str, Records](), list[dict[str, Records]]([{}])
        schema = self._schema(names[-1])
        for name in [name for name in small if self._schema(name) == schema]:
            if sum(map(len, groups[-1].values())) + len(small[name]) > FILE:
                groups.append({})
            groups[-1][name] = small[name]
        for group in groups:
            written |= [self._joined(group)]
        return written, [name for group in groups for name in group]

    def _schema(self, name: str) -> pa.Schema:
        """Another release of this program may have written other columns."""
        with self.at.open(name) as file:
            return pq.read_schema(file)

    def _joined(self, some: Mapping[str, Records]) -> Named:
        return self._written((layout.read(self.at, name) for name in some), index.joined(some.values()))

    def _written(self, tables: Iterator[pa.Table], records: Records) -> Named:
        name = f"{layout.LINKS}/{self.state.number + 1:08}-{self.number:03}{ending(self.state.run)}"
        self.number += 1
        settled = records.copy()
        settled["state"] &= np.uint8(FAILED | LOST)
        data = _parquet(tables)
        self.at.write(layout.index_of(name), index.saved(settled))
        self.at.write(name, data)
        return name, records


def ending(run: str) -> str:
    """Of the names of files that a run has made."""
    return f"-{run[:8]}.parquet"


def _parquet(tables: Iterator[pa.Table]) -> bytes:
    sink, waiting = io.BytesIO(), list[pa.Table]()
    writer = None
    for table in chain(_plain(tables), [None]):
        if waiting and (table is None or sum(map(len, waiting)) >= _GROUP):
            whole = pa.concat_tables(waiting)
            writer = writer or pq.ParquetWriter(sink, whole.schema, compression="zstd")
            writer.write_table(whole)
            waiting = []
        if table is not None:
            waiting.append(table)
    if writer:
        writer.close()
    return sink.getvalue()


def _plain(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    return (table.replace_schema_metadata(None) for table in tables)
