"""What is done, in an index: which documents a run has still to do is told without opening any links.

Each file of links has its records beside it (DIR/index), in its order. When a run begins, all of them
are put together by the input's files, into so many heaps on the disk; who reads an input's file takes the
heap it is in. So no process ever holds more than one heap, however much is done.
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

# What a document is known by from run to run: the file it is in, and a digest of what it says.
#
# Not by its number in the file: a line put in or taken out would make every later document another. Of equal
# documents in one file, any is as good as the other; how many there are counts. A worker is told by a mark
# behind the document's source:
#
#     pairs.jsonl:17#<file, 16 hex digits><digest, 16 hex digits>   and ! where an error row of it is there


RECORD = np.dtype(  # of one document of a file of links
    [
        ("file", np.uint64),
        ("row", np.uint64),  # its number in the input, when it was read
        ("digest", np.uint64),
        ("rows", np.uint32),  # of links
        ("run", np.uint32),  # that wrote it
        ("state", np.uint8),
    ]
)
FAILED, AGAIN, LOST = 1, 2, 4  # states: has an error row; stands for one that has; what could not be read
Records = npt.NDArray[np.void]
REST_DIGEST = 1  # of what could not be had of a file: whatever is had another time takes its place
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
    """Where a file is, whatever way its address goes there: links and .. are followed."""
    path = address.removeprefix("file://")
    return path if "://" in path else str(Path(path).resolve())


def file_key(address: str) -> int:
    return hashed(place(address).encode())


def digests(documents: pa.Table) -> npt.NDArray[np.uint64]:
    """Of what each document says and asks for. A picture that is given by address is known by that."""
    rows = documents.select([c for c in _COLUMNS if c in documents.column_names]).to_pylist()
    return np.array([_digest(row) for row in rows], np.uint64)


def _digest(row: dict[str, Any]) -> int:
    picture = row.pop("image", None) or b""
    return hashed(
        json.dumps(row, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass"), picture
    )


def marked(source: str, file: int, digest: int, again: bool) -> str:
    return f"{source}#{file:016x}{digest:016x}{'!' if again else ''}"


def plain(source: str) -> str:
    """Without its mark, for people."""
    return _MARK.sub("", source)


def records(documents: Sequence[tuple[str, int]], run: str, failed: Sequence[bool]) -> Records:
    """Of sources with their numbers of rows. One without a mark is known by what it is called."""
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
    """Whether the document says what of a file could not be had, and may be another time."""
    return plain(source).endswith(f":{REST}")


def _parsed(source: str) -> tuple[int, int, int]:
    address, _, number = plain(source).rpartition(":")
    row = int(number) if number.isdecimal() else 0
    if mark := _MARK.search(source):
        return int(mark[1], 16), row, int(mark[2], 16)
    return file_key(address), row, hashed(source.encode())


_log = logging.getLogger(__name__)
_HEAPS = 64
_HELD = 4_000_000  # records in memory before they go to the disk
_HEAP = np.dtype([("file", np.uint64), ("digest", np.uint64), ("state", np.uint8)])
_ASKED = 8  # a state: its error is one of those that are retried


@dataclass
class Known:
    """What is done of one file: how many of each digest there are `left` to be met in it, and how many of
    those that failed are to be done `again`."""

    digests: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    left: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    again: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def meet(self, digest: int) -> str:
        """Of a document in the file: "done", "again" or "new"."""
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

    def are_all(self, documents: int | None) -> bool:
        """Whether so many documents are done, and none is to be done again."""
        return int(self.left.sum()) == documents and not self.again.any()

    def surplus(self) -> list[tuple[int, int]]:
        """Digests that were not met, and how often: the file holds them no more."""
        over = self.left + self.again
        return [(int(self.digests[at]), int(over[at])) for at in np.flatnonzero(over)]


@dataclass(frozen=True)
class Done:
    """What the run found done; a few words, wherever they are sent."""

    output: Place
    run: str
    number: int = 0  # documents
    asked: int = 0  # of those that failed, how many are to be done again

    def __len__(self) -> int:
        return self.number

    def of(self, file: int) -> Known:
        """Of one file of the input, by its key."""
        at = folder_at(self.output)
        pieces = [np.load(io.BytesIO(at.read(name))) for name in at.names(_heap(self.run, file % _HEAPS))]
        found = np.concatenate([np.empty(0, _HEAP), *(piece[piece["file"] == file] for piece in pieces)])
        digests, where = np.unique(found["digest"], return_inverse=True)

        def how_many(state: int) -> npt.NDArray[np.int64]:
            return np.bincount(where[(found["state"] & state) > 0], minlength=len(digests))

        # Of one that failed and its successor, written by a run that was killed then, both are there yet.
        paired = np.minimum(how_many(AGAIN), how_many(FAILED | LOST))
        again = np.maximum(0, how_many(_ASKED) - paired)
        return Known(digests, np.bincount(where, minlength=len(digests)) - paired - again, again)

    def passed(self, file: int, known: Known, documents: int | None) -> None:
        """Note that the whole file was read, what of it is in the output and no more in the file, and how
        many `documents` it holds, where all of them are taken."""
        said = {"gone": known.surplus(), "documents": documents}
        name = f"{layout.PASSES}/{self.run}/{file:016x}.json"
        folder_at(self.output).write(name, json.dumps(said).encode())

    def gone(self) -> dict[tuple[int, int], int]:
        """By file and digest: how many documents the files that were read whole hold no more."""
        return {(file, digest): n for file, said in self._passes() for digest, n in said["gone"]}

    def whole(self) -> dict[int, int]:
        """By file: how many documents those hold of which all are taken."""
        return {file: said["documents"] for file, said in self._passes() if said["documents"] is not None}

    def _passes(self) -> Iterator[tuple[int, dict[str, Any]]]:
        at = folder_at(self.output)
        for name in at.names(f"{layout.PASSES}/{self.run}"):
            yield int(name.rpartition("/")[2].removesuffix(".json"), 16), json.loads(at.read(name))


def finished(output: Place, retry: str | None = None) -> Done:
    """What is done, for the run that writes now. `retry`: those with an error row that holds this text, in
    any case of its letters, count as not done, until they have a successor; what could not be had of a file
    never counts. A torn file is set aside."""
    at = folder_at(output)
    state = layout.latest(at)
    heaps: list[list[npt.NDArray[np.void]]] = [[] for _ in range(_HEAPS)]
    number = asked = held = 0
    for found in _all_records(at, state, retry):
        number += len(found) - int(np.count_nonzero(found["state"] & AGAIN))
        asked += int(np.count_nonzero(found["state"] & _ASKED))
        for heap, some in enumerate(_heaped(found)):
            heaps[heap].append(some)
        held += len(found)
        if held > _HELD:
            _flush(at, state.run, heaps)
            held = 0
    _flush(at, state.run, heaps)
    return Done(output, state.run, number - asked, asked)


def _flush(at: Folder, run: str, heaps: list[list[npt.NDArray[np.void]]]) -> None:
    for number, heap in enumerate(heaps):
        if sum(map(len, heap)):
            at.write(f"{_heap(run, number)}/{uuid.uuid4().hex}.npy", saved(np.concatenate(heap)))
        heap.clear()


def _all_records(at: Folder, state: layout.State, retry: str | None) -> Iterator[Records]:
    there = set(at.names(layout.LINKS))
    for name, number in state.files:
        if name not in there:
            _log.warning("%s/%s is gone: its %s documents are done again", at, name, f"{number:,}")
        elif (found := of_file(at, name)) is not None:
            yield _asked(at, name, found, retry)
    for name in layout.counting_parts(at, state):
        if not layout.is_torn(at, name):
            yield _asked(at, name, of_part(at, name), retry)


def _asked(at: Folder, name: str, found: Records, retry: str | None) -> Records:
    """The records, those marked that are to be done again."""
    found = found.copy()
    found["state"][(found["state"] & LOST) > 0] |= _ASKED
    if retry is None or not np.any(found["state"] & FAILED):
        return found
    table = layout.read(at, name, ["status", "error"])
    hits = [
        status == "error" and retry.lower() in error.lower()
        for status, error in zip(table["status"].to_pylist(), table["error"].to_pylist(), strict=True)
    ]
    starts = (np.cumsum(found["rows"]) - found["rows"]).astype(np.int64)
    some = np.add.reduceat(np.array(hits, np.int64), starts) > 0
    found["state"][some] |= _ASKED
    return found


def of_file(at: Folder, name: str) -> Records | None:
    """The records of a file of links; None, and both set aside, where one of them is torn."""
    index = layout.index_of(name)
    try:
        found: Records = np.load(io.BytesIO(at.read(index)))
    except (ValueError, EOFError, FileNotFoundError):
        layout.set_aside(at, name)
        return None
    return None if layout.is_torn(at, name) else found


def of_part(at: Folder, name: str) -> Records:
    listed, run = layout.of_part(at, name), name.split("/")[1]
    return records([(source, rows) for source, rows, _ in listed], run, [bad for *_, bad in listed])


def of_any(at: Folder, name: str) -> Records:
    """The records of a file of links, or of a part, that counts."""
    if name.startswith(layout.PARTS):
        return of_part(at, name)
    found = of_file(at, name)
    return np.empty(0, RECORD) if found is None else found


def saved(found: Records) -> bytes:
    sink = io.BytesIO()
    np.save(sink, found)
    return sink.getvalue()


def joined(some: Iterable[Records]) -> Records:
    return np.concatenate([np.empty(0, RECORD), *some])


def _heaped(found: Records) -> Iterator[npt.NDArray[np.void]]:
    slim = np.empty(len(found), _HEAP)
    for name in _HEAP.names or ():
        slim[name] = found[name]
    which = found["file"] % np.uint64(_HEAPS)
    order = np.argsort(which, kind="stable")
    ends = np.searchsorted(which[order], np.arange(_HEAPS + 1))
    return (slim[order[a:b]] for a, b in pairwise(ends))


def _heap(run: str, number: int) -> str:
    return f"{layout.DONE}/{run}/{number:02}"
