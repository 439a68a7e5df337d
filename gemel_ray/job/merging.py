"""Parts are merged into files of a useful size, during a job and at its end: each row is in exactly one file.

The same step replaces rows: a row that was done again takes the place of the failed one, and rows of
documents that have gone from the input go once all of the input is written. One ledger entry commits it,
whole or not at all; a driver that is killed before that has changed nothing.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gemel_ray.job import index, results
from gemel_ray.job.index import Records, run_number
from gemel_ray.job.results import State, TakenOver
from gemel_ray.job.selection import AGAIN, FAILED, LOST, Done
from gemel_ray.storage import Folder, Place, folder_at

# Files of links and their records, written from parts, from what stays of other files, and from small files.


FILE = 100_000  # documents, after which parts become a file
FEW = 8  # files of less than half of that; more than FEW are combined
_GROUP = 20_000  # rows that are compressed together
NamedRecords = tuple[str, Records]


@dataclass(frozen=True)
class LinkFiles:
    """Earlier files, whose records are read one by one, and those just `merged`."""

    folder: Folder
    former: list[str]
    merged: Mapping[str, Records]

    def items(self, ending: str = "") -> Iterator[NamedRecords]:
        """The files whose names have the ending, oldest first."""
        for name in self.former:
            if name.endswith(ending) and (found := index.of_file(self.folder, name)) is not None:
                yield name, found
        yield from ((name, found) for name, found in self.merged.items() if name.endswith(ending))


@dataclass
class Writing:
    """Writes files for a run that settles a `state`. They count once the ledger has them."""

    folder: Folder
    state: State
    number: int = 0  # files written

    def of_parts(self, parts: Mapping[str, Records]) -> Iterator[NamedRecords]:
        group, size = list[str](), 0
        for part in (*parts, None):
            if group and (part is None or size >= FILE):
                yield self._joined({name: parts[name] for name in group})
                group, size = [], 0
            if part is not None:
                group.append(part)
                size += len(parts[part])

    def without(self, files: LinkFiles, changed: Mapping[str, npt.NDArray[np.bool_]]) -> dict[str, Records]:
        """Write the files that lose documents again, with the documents that stay."""
        return dict(
            self._written(
                iter([results.read(self.folder, name).filter(pa.array(np.repeat(keep, records["rows"])))]),
                records[keep],
            )
            for name, records in (files.items() if changed else ())
            if name in changed and (keep := changed[name]).any()
        )

    def combined(self, files: LinkFiles) -> tuple[dict[str, Records], list[str]]:
        """Combine the small files if they are many; the new files, and the names of those they replace."""
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
        """The file's columns: another release of this program may have written others."""
        with self.folder.open(name) as file:
            return pq.read_schema(file)

    def _joined(self, some: Mapping[str, Records]) -> NamedRecords:
        return self._written((results.read(self.folder, name) for name in some), index.joined(some.values()))

    def _written(self, tables: Iterator[pa.Table], records: Records) -> NamedRecords:
        name = f"{results.LINKS}/{self.state.number + 1:08}-{self.number:03}{ending(self.state.run)}"
        self.number += 1
        settled = records.copy()
        settled["state"] &= np.uint8(FAILED | LOST)
        data = _parquet(tables)
        self.folder.write(results.index_of(name), index.saved(settled))
        self.folder.write(name, data)
        return name, records


def ending(run: str) -> str:
    """The ending of the names of a run's files."""
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


Surplus = Counter[tuple[int, int]]  # by file and digest: how many documents must go
_Triple = tuple[int, int, int]  # a document's file, row and digest


@dataclass
class Merging:
    """Merges a run's parts, in its driver. While the run goes, only parts whose workers have answered are
    merged: a worker that dies before it answers looks for its part, and would compute a merged one again."""

    output: Place
    run: str
    answered: list[str] = field(default_factory=list)
    documents: int = 0
    done: Done | None = None  # once the run has computed all it takes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, fault: BaseException | None, trace: object) -> None:
        """Settle, however the run ended. A further storage failure must not hide what ended it."""
        with suppress(*() if fault is None else (OSError, ValueError)):
            self.settle()

    def add(self, part: str, documents: int) -> None:
        """A worker has answered with a part. Raises TakenOver."""
        self.answered.append(part)
        self.documents += documents
        if self.documents >= FILE:
            self._merge()

    def _merge(self) -> None:
        folder = folder_at(self.output)
        state, waiting = _current_state(folder, self.run), list[str]()
        records = {part: index.of_part(folder, part) for part in self.answered}
        for part in self.answered:
            # A part with retried documents replaces others: that is done at the end.
            if np.any(records[part]["state"] & AGAIN):
                waiting.append(part)
        parts = {part: some for part, some in records.items() if part not in waiting}
        _commit(folder, state, dict(Writing(folder, state).of_parts(parts)), [], list(parts))
        self.answered, self.documents = waiting, 0

    def settle(self) -> None:
        """Merge all parts. Drop rows that have a successor, and rows of documents that have gone from files
        that were read whole. Combine small files, as many short runs leave them. Raises TakenOver."""
        folder = folder_at(self.output)
        state = _current_state(folder, self.run)
        records = {part: index.of_part(folder, part) for part in results.counting_parts(folder, state)}
        writing = Writing(folder, state)
        merged = dict(writing.of_parts(records))
        there = set(folder.names(results.LINKS))
        files = LinkFiles(folder, [name for name, _ in state.files if name in there], merged)
        drops = _superseded(merged)
        if self.done is not None:
            drops += Counter(self.done.gone())
        duplicates = _duplicates(files, self.run)
        changed = _kept(files, drops, duplicates)
        fresh = {name: found for name, found in merged.items() if name not in changed}
        fresh |= writing.without(files, changed)
        kept = LinkFiles(folder, [name for name in files.former if name not in changed], fresh)
        joined, small = writing.combined(kept)
        fresh = {name: found for name, found in fresh.items() if name not in small} | joined
        _commit(folder, state, fresh, [*changed, *small], list(records))
        self.answered, self.documents = [], 0


def _current_state(folder: Folder, run: str) -> State:
    state = results.latest(folder)
    if state.run != run:
        raise TakenOver(f"another run of gemel-ray link has taken over {folder}")
    return state


def _superseded(files: Mapping[str, Records]) -> Surplus:
    """The documents that retried ones replace."""
    drops = Surplus()
    for records in files.values():
        for record in records[(records["state"] & AGAIN) > 0]:
            drops[int(record["file"]), int(record["digest"])] += 1
    return drops


def _duplicates(files: LinkFiles, run: str) -> set[_Triple]:
    """Documents that this run wrote twice, as when Ray reconstructs a lost block of its input."""
    ours, found = [r[r["run"] == run_number(run)] for _, r in files.items(ending(run))], set[_Triple]()
    keys = np.concatenate([np.empty(0, np.uint64), *map(_key, ours)])
    keys.sort()
    twice = np.unique(keys[1:][keys[1:] == keys[:-1]])
    for records in ours if len(twice) else ():
        found |= {_triple(record) for record in records[np.isin(_key(records), twice)]}
    return found


def _key(records: Records) -> npt.NDArray[np.uint64]:
    mixed: npt.NDArray[np.uint64] = (
        records["file"] ^ records["digest"] ^ (records["row"] * np.uint64(0x9E3779B97F4A7C15))
    )
    return mixed


def _triple(record: np.void) -> _Triple:
    return int(record["file"]), int(record["row"]), int(record["digest"])


def _kept(files: LinkFiles, drops: Surplus, duplicates: set[_Triple]) -> dict[str, npt.NDArray[np.bool_]]:
    """For each file that loses documents, which of them stay."""
    changed: dict[str, npt.NDArray[np.bool_]] = {}
    if not drops and not duplicates:
        return changed
    left, seen = Surplus(drops), set[_Triple]()
    wanted = np.array([digest for *_, digest in (*drops, *duplicates)], np.uint64)
    for bad_first in (True, False):  # what failed goes before what did not, and the older before the newer
        for name, records in files.items():
            keep = changed.get(name, np.ones(len(records), bool))
            for at in np.flatnonzero(np.isin(records["digest"], wanted) & keep):
                file, row, digest = _triple(records[at])
                state = int(records[at]["state"])
                if bad_first == (state & (FAILED | LOST) > 0 and not state & AGAIN) and left[file, digest]:
                    left[file, digest] -= 1
                    keep[at] = False
                elif not bad_first and (file, row, digest) in duplicates:
                    keep[at] = (file, row, digest) not in seen
                    seen.add((file, row, digest))
            if not keep.all():
                changed[name] = keep
    return changed


def _commit(
    folder: Folder, state: State, fresh: Mapping[str, Records], stale: Sequence[str], parts: Sequence[str]
) -> None:
    """Make the files count, in one step; then delete what they were made from."""
    there = set(folder.names(results.LINKS))
    old = [(name, number) for name, number in state.files if name not in stale and name in there]
    new = tuple((*old, *((name, len(records)) for name, records in fresh.items())))
    if new == state.files and not parts:
        return
    left = tuple(part for part in state.parts if part not in set(parts))
    results.commit(
        folder, replace(state, number=state.number + 1, files=new, parts=left, gone=(*parts, *stale))
    )
    for name in (*parts, *stale):
        folder.remove(name)
    for name in stale:
        folder.remove(results.index_of(name))
