"""An index of what is done: it tells a run what is left to do without opening any links.

Each file of links has its records beside it (DIR/index), in its order. When a run begins, all records are
partitioned on the disk by the input file; whoever reads an input file reads the one partition it is in. So
no process ever has more than one partition in memory, however much is done.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gemel_ray.job import layout
from gemel_ray.readers import REST
from gemel_ray.storage import Folder, Place, folder_at

# A document is identified from run to run by the file it is in and a digest of its content.
#
# Not by its number in the file: a line inserted or deleted would change that of every later document. Equal
# documents in one file are interchangeable; only their number counts. A worker gets both in a mark after the
# document's source:
#
#     pairs.jsonl:17#<file, 16 hex digits><digest, 16 hex digits>   and ! where it has an error row already


RECORD = np.dtype(  # one document of a file of links
    [
        ("file", np.uint64),
        ("row", np.uint64),  # its number in the input, when it was read
        ("digest", np.uint64),
        ("rows", np.uint32),  # its links
        ("run", np.uint32),  # the run that wrote it
        ("state", np.uint8),
    ]
)
FAILED, AGAIN, LOST = 1, 2, 4  # states: has an error row; replaces one that has; unreadable rest of a file
Records = npt.NDArray[np.void]
REST_DIGEST = 1  # of the unreadable rest of a file: whatever is read another time takes its place
_HEAD = 2**16  # bytes
_MARK = re.compile(r"#([0-9a-f]{16})([0-9a-f]{16})(!?)$")
_COLUMNS = ("document_id", "text", "image", "image_address", "image_key", "given", "options", "error")


def hashed(*parts: bytes) -> int:
    made = hashlib.blake2b(digest_size=8)
    for part in parts:
        made.update(len(part).to_bytes(8))
        made.update(part)
    return int.from_bytes(made.digest())


def head(file: IO[bytes]) -> str:
    """A digest of an open file's first bytes."""
    return hashlib.blake2b(file.read(_HEAD), digest_size=16).hexdigest()


def place(address: str) -> str:
    """The file's path with links and .. resolved, or its address in a store."""
    path = address.removeprefix("file://")
    return path if "://" in path else str(Path(path).resolve())


def file_key(address: str) -> int:
    return hashed(place(address).encode())


def digests(documents: pa.Table) -> npt.NDArray[np.uint64]:
    """Digests of each document's content and options. Of a picture given by address, the address counts."""
    rows = documents.select([c for c in _COLUMNS if c in documents.column_names]).to_pylist()
    return np.array([_digest(row) for row in rows], np.uint64)


def _digest(row: dict[str, Any]) -> int:
    picture = row.pop("image", None) or b""
    return hashed(
        json.dumps(row, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass"), picture
    )


def with_mark(source: str, file: int, digest: int, again: bool) -> str:
    return f"{source}#{file:016x}{digest:016x}{'!' if again else ''}"


def without_mark(source: str) -> str:
    """The source without its mark, for people."""
    return _MARK.sub("", source)


def records(documents: Sequence[tuple[str, int]], run: str, failed: Sequence[bool]) -> Records:
    """Records of documents, given as sources and numbers of rows. A source without a mark is its own key."""
    made = np.zeros(len(documents), RECORD)
    for at, ((source, rows), bad) in enumerate(zip(documents, failed, strict=True)):
        made[at] = (*_parsed(source), rows, run_number(run), bad * FAILED)
        if source.endswith("!"):
            made[at]["state"] |= AGAIN
        if is_rest(source):
            made[at]["state"] |= LOST
    return made


def run_number(run: str) -> int:
    return hashed(run.encode()) & 0xFFFFFFFF


def is_rest(source: str) -> bool:
    """Whether the row stands for the unreadable rest of a file, which may be readable another time."""
    return without_mark(source).endswith(f":{REST}")


def _parsed(source: str) -> tuple[int, int, int]:
    address, _, number = without_mark(source).rpartition(":")
    row = int(number) if number.isdecimal() else 0
    if mark := _MARK.search(source):
        return int(mark[1], 16), row, int(mark[2], 16)
    return file_key(address), row, hashed(source.encode())


_log = logging.getLogger(__name__)
_PARTITIONS = 64
_IN_MEMORY = 4_000_000  # records, before they are written to the disk
_SLIM = np.dtype([("file", np.uint64), ("digest", np.uint64), ("state", np.uint8)])
_RETRY = 8  # a state: its error is to be retried


@dataclass
class DoneInFile:
    """What is done of one file. By digest: how many documents are `left` to be found in it, and how many that
    failed are to be done `again`."""

    digests: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    left: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    again: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def classify(self, digest: int) -> str:
        """Count the next document of the file: it is "done", "again" or "new"."""
        at = int(np.searchsorted(self.digests, np.uint64(digest)))
        if at == len(self.digests) or self.digests[at] != digest:
            return "new"
        if self.left[at]:
            self.left[at] -= 1
            return "done"
        if self.again[at]:
            self.again[at] -= 1
            return "again"
        return "new"

    def all_done(self, documents: int | None) -> bool:
        """Whether this number of documents is done, and none is to be done again."""
        return int(self.left.sum()) == documents and not self.again.any()

    def surplus(self) -> list[tuple[int, int]]:
        """Digests that were not found, and how often: the file no longer has them."""
        over = self.left + self.again
        return [(int(self.digests[at]), int(over[at])) for at in np.flatnonzero(over)]


@dataclass(frozen=True)
class Done:
    """What the run found done. Small, so that it can be sent anywhere: the records stay on the disk."""

    output: Place
    run: str
    number: int = 0  # documents
    retried: int = 0  # documents that failed and are to be done again

    def __len__(self) -> int:
        return self.number

    def of(self, file: int) -> DoneInFile:
        """What is done of the input file with this key."""
        folder = folder_at(self.output)
        pieces = [
            np.load(io.BytesIO(folder.read(name)))
            for name in folder.names(_partition_folder(self.run, file % _PARTITIONS))
        ]
        found = np.concatenate([np.empty(0, _SLIM), *(piece[piece["file"] == file] for piece in pieces)])
        digests, where = np.unique(found["digest"], return_inverse=True)

        def how_many(state: int) -> npt.NDArray[np.int64]:
            return np.bincount(where[(found["state"] & state) > 0], minlength=len(digests))

        # A run that was killed before it merged leaves both a failed document and its successor.
        paired = np.minimum(how_many(AGAIN), how_many(FAILED | LOST))
        again = np.maximum(0, how_many(_RETRY) - paired)
        return DoneInFile(digests, np.bincount(where, minlength=len(digests)) - paired - again, again)

    def save_pass(self, file: int, known: DoneInFile, documents: int | None) -> None:
        """Save that the whole file was read, which documents in the output it no longer has, and how many
        `documents` it has, where all of them are taken."""
        entry = {"gone": known.surplus(), "documents": documents}
        name = f"{layout.PASSES}/{self.run}/{file:016x}.json"
        folder_at(self.output).write(name, json.dumps(entry).encode())

    def gone(self) -> dict[tuple[int, int], int]:
        """By file and digest: how many documents are gone from files that were read whole."""
        return {(file, digest): n for file, entry in self._passes() for digest, n in entry["gone"]}

    def whole(self) -> dict[int, int]:
        """By file: numbers of documents of files that were taken whole."""
        return {file: entry["documents"] for file, entry in self._passes() if entry["documents"] is not None}

    def _passes(self) -> Iterator[tuple[int, dict[str, Any]]]:
        folder = folder_at(self.output)
        for name in folder.names(f"{layout.PASSES}/{self.run}"):
            yield int(name.rpartition("/")[2].removesuffix(".json"), 16), json.loads(folder.read(name))


def finished(output: Place, retry: str | None = None) -> Done:
    """What is done, for the run that writes now. `retry`: documents whose error contains this text, ignoring
    case, count as not done until they have a successor; the unreadable rest of a file never counts as done.
    A torn file is set aside."""
    folder = folder_at(output)
    state = layout.latest(folder)
    partitions: list[list[npt.NDArray[np.void]]] = [[] for _ in range(_PARTITIONS)]
    number = retried = in_memory = 0
    for found in _all_records(folder, state, retry):
        number += len(found) - int(np.count_nonzero(found["state"] & AGAIN))
        retried += int(np.count_nonzero(found["state"] & _RETRY))
        for partition, some in enumerate(_partitioned(found)):
            partitions[partition].append(some)
        in_memory += len(found)
        if in_memory > _IN_MEMORY:
            _flush(folder, state.run, partitions)
            in_memory = 0
    _flush(folder, state.run, partitions)
    return Done(output, state.run, number - retried, retried)


def _flush(folder: Folder, run: str, partitions: list[list[npt.NDArray[np.void]]]) -> None:
    for number, partition in enumerate(partitions):
        if sum(map(len, partition)):
            folder.write(
                f"{_partition_folder(run, number)}/{uuid.uuid4().hex}.npy", saved(np.concatenate(partition))
            )
        partition.clear()


def _all_records(folder: Folder, state: layout.State, retry: str | None) -> Iterator[Records]:
    there = set(folder.names(layout.LINKS))
    for name, number in state.files:
        if name not in there:
            _log.warning("%s/%s is gone: its %s documents are done again", folder, name, f"{number:,}")
        elif (found := of_file(folder, name)) is not None:
            yield _with_retries(folder, name, found, retry)
    for name in layout.counting_parts(folder, state):
        if not layout.is_torn(folder, name):
            yield _with_retries(folder, name, of_part(folder, name), retry)


def _with_retries(folder: Folder, name: str, found: Records, retry: str | None) -> Records:
    """The records, with _RETRY in the state of those to be done again."""
    found = found.copy()
    found["state"][(found["state"] & LOST) > 0] |= _RETRY
    if retry is None or not np.any(found["state"] & FAILED):
        return found
    table = layout.read(folder, name, ["status", "error"])
    hits = [
        status == "error" and retry.lower() in error.lower()
        for status, error in zip(table["status"].to_pylist(), table["error"].to_pylist(), strict=True)
    ]
    starts = (np.cumsum(found["rows"]) - found["rows"]).astype(np.int64)
    some = np.add.reduceat(np.array(hits, np.int64), starts) > 0
    found["state"][some] |= _RETRY
    return found


def of_file(folder: Folder, name: str) -> Records | None:
    """The records of a file of links; None where one of the two is torn, which sets both aside."""
    index = layout.index_of(name)
    try:
        found: Records = np.load(io.BytesIO(folder.read(index)))
    except (ValueError, EOFError, FileNotFoundError):
        layout.set_aside(folder, name)
        return None
    return None if layout.is_torn(folder, name) else found


def of_part(folder: Folder, name: str) -> Records:
    listed, run = layout.part_documents(folder, name), name.split("/")[1]
    return records([(source, rows) for source, rows, _ in listed], run, [bad for *_, bad in listed])


def of_any(folder: Folder, name: str) -> Records:
    """The records of a file of links, or of a part, that counts."""
    if name.startswith(layout.PARTS):
        return of_part(folder, name)
    found = of_file(folder, name)
    return np.empty(0, RECORD) if found is None else found


def saved(found: Records) -> bytes:
    sink = io.BytesIO()
    np.save(sink, found)
    return sink.getvalue()


def joined(some: Iterable[Records]) -> Records:
    return np.concatenate([np.empty(0, RECORD), *some])


def _partitioned(found: Records) -> Iterator[npt.NDArray[np.void]]:
    slim = np.empty(len(found), _SLIM)
    for name in _SLIM.names or ():
        slim[name] = found[name]
    which = found["file"] % np.uint64(_PARTITIONS)
    order = np.argsort(which, kind="stable")
    ends = np.searchsorted(which[order], np.arange(_PARTITIONS + 1))
    return (slim[order[a:b]] for a, b in pairwise(ends))


def _partition_folder(run: str, number: int) -> str:
    return f"{layout.DONE}/{run}/{number:02}"
