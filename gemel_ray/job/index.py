"""An index of what is done: a run finds out what is left to do without opening any links.

Each file of links has its records beside it (DIR/index), in its order. When a run begins, all records are
partitioned on the disk by the input file; a reader of an input file reads the one partition it is in. So
no process ever has more than one partition in memory, however much is done.
"""

from __future__ import annotations

import io
import logging
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gemel_ray.job import results
from gemel_ray.job.selection import (
    AGAIN,
    FAILED,
    LOST,
    MARK,
    PARTITIONS,
    RETRY,
    SLIM,
    Done,
    file_key,
    hashed,
    is_rest,
    partition_folder,
    without_mark,
)
from gemel_ray.storage import Folder, Place, folder_at

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
Records = npt.NDArray[np.void]


def records(documents: Sequence[tuple[str, int]], run: str, failed: Sequence[bool]) -> Records:
    """Records of documents, given as sources and numbers of rows. The key of a source without a mark is the
    source."""
    made = np.zeros(len(documents), RECORD)
    for at, ((source, rows), bad) in enumerate(zip(documents, failed, strict=True)):
        made[at] = (*_parsed(source), rows, run_number(run), bad * FAILED)
        if source.endswith("!"):
            made[at]["state"] |= AGAIN
        if is_rest(without_mark(source)):
            made[at]["state"] |= LOST
    return made


def run_number(run: str) -> int:
    return hashed(run.encode()) & 0xFFFFFFFF


def _parsed(source: str) -> tuple[int, int, int]:
    address, _, number = without_mark(source).rpartition(":")
    row = int(number) if number.isdecimal() else 0
    if mark := MARK.search(source):
        return int(mark[1], 16), row, int(mark[2], 16)
    return file_key(address), row, hashed(source.encode())


_log = logging.getLogger(__name__)
_IN_MEMORY = 4_000_000  # records, before they are written to the disk


def finished(output: Place, retry: str | None = None) -> Done:
    """What is done, for the run that writes now. `retry`: documents whose error contains this text, ignoring
    case, count as not done until they have a successor; the unreadable rest of a file never counts as done.
    A torn file is set aside."""
    folder = folder_at(output)
    state = results.latest(folder)
    partitions: list[list[npt.NDArray[np.void]]] = [[] for _ in range(PARTITIONS)]
    number = retried = in_memory = 0
    for found in _all_records(folder, state, retry):
        number += len(found) - int(np.count_nonzero(found["state"] & AGAIN))
        retried += int(np.count_nonzero(found["state"] & RETRY))
        for partition, some in enumerate(_partitioned(found)):
            partitions[partition].append(some)
        in_memory += len(found)
        if in_memory > _IN_MEMORY:
            _flush(folder, state.run, partitions)
            in_memory = 0
    _flush(folder, state.run, partitions)
    return Done(output, state.run, number - retried, retried)


def all_done(folder: Folder, whole: Mapping[int, int]) -> bool:
    """Whether the output has every document of these files, by key numbers of documents, and no other work
    is left: nothing to merge, to replace or to try again. Changes nothing."""
    state, there = results.latest(folder), set(folder.names(results.LINKS))
    if results.counting_parts(folder, state) or sum(n for _, n in state.files) < sum(whole.values()):
        return False
    numbers = Counter[int]()
    for name, _ in state.files:
        if name not in there or (found := _intact(folder, name)) is None:
            return False
        if np.any(found["state"] & (AGAIN | LOST)):
            return False
        keys, counts = np.unique(found["file"], return_counts=True)
        numbers.update(dict(zip(keys.tolist(), counts.tolist(), strict=True)))
    return all(numbers[key] == number for key, number in whole.items())


def _intact(folder: Folder, name: str) -> Records | None:
    """The records of a file of links; None where one of the two is torn."""
    try:
        found: Records = np.load(io.BytesIO(folder.read(results.index_of(name))))
    except (ValueError, EOFError, FileNotFoundError):
        return None
    return found if results.is_parquet(folder, name) else None


def _flush(folder: Folder, run: str, partitions: list[list[npt.NDArray[np.void]]]) -> None:
    for number, partition in enumerate(partitions):
        if sum(map(len, partition)):
            folder.write(
                f"{partition_folder(run, number)}/{uuid.uuid4().hex}.npy", saved(np.concatenate(partition))
            )
        partition.clear()


def _all_records(folder: Folder, state: results.State, retry: str | None) -> Iterator[Records]:
    there = set(folder.names(results.LINKS))
    for name, number in state.files:
        if name not in there:
            _log.warning("%s/%s is gone: its %s documents are done again", folder, name, f"{number:,}")
        elif (found := of_file(folder, name)) is not None:
            yield _with_retries(folder, name, found, retry)
    for name in results.counting_parts(folder, state):
        if not results.is_torn(folder, name):
            yield _with_retries(folder, name, of_part(folder, name), retry)


def _with_retries(folder: Folder, name: str, found: Records, retry: str | None) -> Records:
    """The records, with RETRY in the state of those to be done again."""
    found = found.copy()
    found["state"][(found["state"] & LOST) > 0] |= RETRY
    if retry is None or not np.any(found["state"] & FAILED):
        return found
    table = results.read(folder, name, ["status", "error"])
    hits = [
        status == "error" and retry.lower() in error.lower()
        for status, error in zip(table["status"].to_pylist(), table["error"].to_pylist(), strict=True)
    ]
    starts = (np.cumsum(found["rows"]) - found["rows"]).astype(np.int64)
    some = np.add.reduceat(np.array(hits, np.int64), starts) > 0
    found["state"][some] |= RETRY
    return found


def of_file(folder: Folder, name: str) -> Records | None:
    """The records of a file of links; None where one of the two is torn, which sets both aside."""
    found = _intact(folder, name)
    if found is None:
        results.set_aside(folder, name)
    return found


def of_part(folder: Folder, name: str) -> Records:
    listed, run = results.part_documents(folder, name), name.split("/")[1]
    return records([(source, rows) for source, rows, _ in listed], run, [bad for *_, bad in listed])


def of_any(folder: Folder, name: str) -> Records:
    """The records of a file of links, or of a part, that counts."""
    if name.startswith(results.PARTS):
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
    slim = np.empty(len(found), SLIM)
    for name in SLIM.names or ():
        slim[name] = found[name]
    which = found["file"] % np.uint64(PARTITIONS)
    order = np.argsort(which, kind="stable")
    ends = np.searchsorted(which[order], np.arange(PARTITIONS + 1))
    return (slim[order[a:b]] for a, b in pairwise(ends))
