"""Parts become files of a useful size, as a job goes and at its end: each row in exactly one that counts.

What replaces what is settled in the same step: a row that was done again takes the place of the one that had
failed, and rows of documents that the input holds no more go when all that it holds now is written. One
ledger entry says so, whole or not at all; a driver that is killed before it has changed nothing.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gemel_ray.job import index, layout, ledger
from gemel_ray.job.identity import AGAIN, FAILED, LOST, Records, run_number
from gemel_ray.job.ledger import State, TakenOver
from gemel_ray.object_folder import Place, folder_at
from gemel_ray.storage import Folder

FILE = 100_000  # documents, after which parts become a file
_GROUP = 20_000  # rows that are compressed together
Surplus = Counter[tuple[int, int]]  # of a file and a digest: how many documents must go
New = dict[str, Records]
_Triple = tuple[int, int, int]  # file, row and digest of a document


@dataclass
class Merging:
    """What a run's driver knows of its parts. Only those whose workers have answered are merged while it
    goes: another would be computed again, were its worker to die, and then not be found."""

    output: Place
    run: str
    answered: list[str] = field(default_factory=list)
    documents: int = 0
    done: index.Done | None = None  # once the run has been through all it takes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, fault: BaseException | None, trace: object) -> None:
        """However the run ends. What ended it is said, not that storage then failed once more."""
        with suppress(*() if fault is None else (OSError, ValueError)):
            self.settle()

    def add(self, part: str, documents: int) -> None:
        """A worker has answered with a part. Raises TakenOver."""
        self.answered.append(part)
        self.documents += documents
        if self.documents >= FILE:
            self._merge()

    def _merge(self) -> None:
        at = folder_at(self.output)
        state, held = _ours(at, self.run), list[str]()
        records = {part: index.of_part(at, part) for part in self.answered}
        for part in self.answered:
            # One that stands for another takes its place at the end.
            if np.any(records[part]["state"] & AGAIN):
                held.append(part)
        parts = {part: some for part, some in records.items() if part not in held}
        _commit(at, state, list(_merged(at, state, parts)), [], list(parts))
        self.answered, self.documents = held, 0

    def settle(self) -> None:
        """Merge all parts, and let go what has a successor, and what files that were read whole hold no more.
        Raises TakenOver."""
        at = folder_at(self.output)
        state = _ours(at, self.run)
        records = {part: index.of_part(at, part) for part in layout.counting_parts(at, state)}
        merged = list(_merged(at, state, records))
        files = _Files(at, [name for name, _ in state.files if name in at.names(layout.LINKS)], dict(merged))
        drops = _superseded(files.merged)
        if self.done is not None:
            drops += Counter(self.done.gone())
        doubled = _doubled(files, self.run)
        changed = _kept(files, drops, doubled)
        fresh = [(n, f) for n, f in merged if n not in changed]
        fresh += list(_rewritten(at, state, files, changed, len(merged)))
        _commit(at, state, fresh, list(changed), list(records))
        self.answered, self.documents = [], 0


def _ours(at: Folder, run: str) -> State:
    state = ledger.latest(at)
    if state.run != run:
        raise TakenOver(f"another run of gemel-ray link has taken over {at}")
    return state


@dataclass(frozen=True)
class _Files:
    """Files of links: those of before, whose records are read one by one, and those just `merged`."""

    at: Folder
    former: list[str]
    merged: New

    def items(self, ending: str = "") -> Iterator[tuple[str, Records]]:
        """Those whose names end so, oldest first."""
        for name in self.former:
            if name.endswith(ending) and (found := index.of_file(self.at, name)) is not None:
                yield name, found
        yield from ((name, found) for name, found in self.merged.items() if name.endswith(ending))


def _merged(at: Folder, state: State, parts: New) -> Iterator[tuple[str, Records]]:
    """Files of links of these parts, written, with their records."""
    group, size, number = list[str](), 0, 0
    for part in (*parts, None):
        if group and (part is None or size >= FILE):
            tables = (layout.read(at, name) for name in group)
            records = index.joined(parts[name] for name in group)
            yield _written(at, _name(state, number), tables, records)
            group, size, number = [], 0, number + 1
        if part is not None:
            group.append(part)
            size += len(parts[part])


def _name(state: State, number: int) -> str:
    return f"{layout.LINKS}/{state.number + 1:08}-{number:03}{_ending(state.run)}"


def _ending(run: str) -> str:
    """Of the names of files that a run has made."""
    return f"-{run[:8]}.parquet"


def _written(at: Folder, name: str, tables: Iterator[pa.Table], records: Records) -> tuple[str, Records]:
    settled = records.copy()
    settled["state"] &= np.uint8(FAILED | LOST)
    sink, waiting = io.BytesIO(), list[pa.Table]()
    writer = None
    for table in (*_plain(tables), None):
        if waiting and (table is None or sum(map(len, waiting)) >= _GROUP):
            whole = pa.concat_tables(waiting)
            writer = writer or pq.ParquetWriter(sink, whole.schema, compression="zstd")
            writer.write_table(whole)
            waiting = []
        if table is not None:
            waiting.append(table)
    if writer:
        writer.close()
    at.write(layout.index_of(name), index.saved(settled))
    at.write(name, sink.getvalue())
    return name, records


def _plain(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    return (table.replace_schema_metadata(None) for table in tables)


def _superseded(files: New) -> Surplus:
    """Of what was done again, those that it stands for."""
    drops = Surplus()
    for records in files.values():
        for record in records[(records["state"] & AGAIN) > 0]:
            drops[int(record["file"]), int(record["digest"])] += 1
    return drops


def _doubled(files: _Files, run: str) -> set[_Triple]:
    """Documents that this run wrote twice, as when Ray makes a lost block of its input again."""
    ours, found = [r[r["run"] == run_number(run)] for _, r in files.items(_ending(run))], set[_Triple]()
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


def _kept(files: _Files, drops: Surplus, doubled: set[_Triple]) -> dict[str, npt.NDArray[np.bool_]]:
    """Of the files that lose some, which documents stay."""
    changed: dict[str, npt.NDArray[np.bool_]] = {}
    if not drops and not doubled:
        return changed
    left, seen = Surplus(drops), set[_Triple]()
    wanted = np.array([digest for *_, digest in (*drops, *doubled)], np.uint64)
    for bad_first in (True, False):  # what failed goes before what did not, and the older before the newer
        for name, records in files.items():
            keep = changed.get(name, np.ones(len(records), bool))
            for at in np.flatnonzero(np.isin(records["digest"], wanted) & keep):
                file, row, digest = _triple(records[at])
                state = int(records[at]["state"])
                if bad_first == (state & (FAILED | LOST) > 0 and not state & AGAIN) and left[file, digest]:
                    left[file, digest] -= 1
                    keep[at] = False
                elif not bad_first and (file, row, digest) in doubled:
                    keep[at] = (file, row, digest) not in seen
                    seen.add((file, row, digest))
            if not keep.all():
                changed[name] = keep
    return changed


def _rewritten(
    at: Folder, state: State, files: _Files, changed: dict[str, npt.NDArray[np.bool_]], number: int
) -> Iterator[tuple[str, Records]]:
    """The files without the documents that go."""
    for name, records in files.items() if changed else ():
        if name in changed and (keep := changed[name]).any():
            table = layout.read(at, name).filter(pa.array(np.repeat(keep, records["rows"])))
            yield _written(at, _name(state, number), iter([table]), records[keep])
            number += 1


def _commit(at: Folder, state: State, fresh: Sequence[tuple[str, Records]], stale: Sequence[str],
            parts: Sequence[str]) -> None:  # fmt: skip
    """Make it count, in one step; then delete what it was made of."""
    there = set(at.names(layout.LINKS))
    old = [(name, number) for name, number in state.files if name not in stale and name in there]
    new = tuple((*old, *((name, len(records)) for name, records in fresh)))
    if new == state.files and not parts:
        return
    left = tuple(part for part in state.parts if part not in set(parts))
    ledger.commit(at, replace(state, number=state.number + 1, files=new, parts=left, gone=(*parts, *stale)))
    for name in (*parts, *stale):
        at.remove(name)
    for name in stale:
        at.remove(layout.index_of(name))
