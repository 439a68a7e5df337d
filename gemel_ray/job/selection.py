"""Which documents of the input a run takes: those not done yet, within a limit or a sample."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gemel_ray.errors import Mistake
from gemel_ray.job import results
from gemel_ray.pictures.limits import FILTERED
from gemel_ray.readers import REST, count, documents
from gemel_ray.settings import Input
from gemel_ray.stage import ERROR, failed
from gemel_ray.storage import Place, folder_at

# A document is identified from run to run by the file it is in and a digest of its content.
#
# Not by its number in the file: a line inserted or deleted would change that of every later document. Equal
# documents in one file are interchangeable; only their number counts. A worker gets both in a mark after the
# document's source:
#
#     pairs.jsonl:17#<file, 16 hex digits><digest, 16 hex digits>   and ! where it has an error row already


FAILED, AGAIN, LOST = 1, 2, 4  # states: has an error row; replaces one that has; unreadable rest of a file
RETRY = 8  # a state: its error is to be retried
# What a run found done is on the disk, in this form, partitioned by the input file (job/index.py).
SLIM = np.dtype([("file", np.uint64), ("digest", np.uint64), ("state", np.uint8)])
PARTITIONS = 64
REST_DIGEST = 1  # of the unreadable rest of a file: whatever is read another time takes its place
MARK = re.compile(r"#([0-9a-f]{16})([0-9a-f]{16})(!?)$")
_COLUMNS = ("document_id", "text", "image", "image_address", "image_key", "given", "options", "error")


def hashed(*parts: bytes) -> int:
    made = hashlib.blake2b(digest_size=8)
    for part in parts:
        made.update(len(part).to_bytes(8))
        made.update(part)
    return int.from_bytes(made.digest())


def place(address: str) -> str:
    """The file's path with links and .. resolved, or its address in a store."""
    path = address.removeprefix("file://")
    return path if "://" in path else str(Path(path).resolve())


def file_key(address: str) -> int:
    return hashed(place(address).encode())


def digests(documents: pa.Table) -> npt.NDArray[np.uint64]:
    """Digests of each document's content and options. Of a picture given by address, the address counts."""
    rows = documents.select([c for c in _COLUMNS if c in documents.column_names]).to_pylist()
    pictures = [row.pop("image", None) or b"" for row in rows]
    others = (json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows)
    pairs = zip(others, pictures, strict=True)
    return np.array(
        [hashed(other.encode("utf-8", "surrogatepass"), picture) for other, picture in pairs], np.uint64
    )


def without_mark(source: str) -> str:
    """The source without its mark, for people."""
    return MARK.sub("", source)


def is_rest(source: str) -> bool:
    """Whether the row represents the unreadable rest of a file, which may be readable another time."""
    return source.endswith(f":{REST}")


def keys(sources: Sequence[str]) -> Keys:
    """Hashes of sources, in their order."""
    digests = b"".join(hashlib.blake2b(s.encode(), digest_size=8).digest() for s in sources)
    return np.frombuffer(digests, np.uint64)


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
        if at < len(self.digests) and self.digests[at] == digest:
            for state, expected in (("done", self.left), ("again", self.again)):
                if expected[at]:
                    expected[at] -= 1
                    return state
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
            for name in folder.names(partition_folder(self.run, file % PARTITIONS))
        ]
        found = np.concatenate([np.empty(0, SLIM), *(piece[piece["file"] == file] for piece in pieces)])
        digests, where = np.unique(found["digest"], return_inverse=True)

        def how_many(state: int) -> npt.NDArray[np.int64]:
            return np.bincount(where[(found["state"] & state) > 0], minlength=len(digests))

        # A run that was killed before it merged leaves both a failed document and its successor.
        paired = np.minimum(how_many(AGAIN), how_many(FAILED | LOST))
        again = np.maximum(0, how_many(RETRY) - paired)
        return DoneInFile(digests, np.bincount(where, minlength=len(digests)) - paired - again, again)

    def save_pass(self, file: int, known: DoneInFile, documents: int | None) -> None:
        """Save that the whole file was read, which documents in the output it no longer has, and how many
        `documents` it has, where all of them are taken."""
        entry = {"gone": known.surplus(), "documents": documents}
        name = f"{results.PASSES}/{self.run}/{file:016x}.json"
        folder_at(self.output).write(name, json.dumps(entry).encode())

    def gone(self) -> dict[tuple[int, int], int]:
        """By file and digest: how many documents are gone from files that were read whole."""
        return {(file, digest): n for file, entry in self._passes() for digest, n in entry["gone"]}

    def whole(self) -> dict[int, int]:
        """By file: numbers of documents of files that were taken whole."""
        return {file: entry["documents"] for file, entry in self._passes() if entry["documents"] is not None}

    def _passes(self) -> Iterator[tuple[int, dict[str, Any]]]:
        folder = folder_at(self.output)
        for name in folder.names(f"{results.PASSES}/{self.run}"):
            yield int(name.rpartition("/")[2].removesuffix(".json"), 16), json.loads(folder.read(name))


def partition_folder(run: str, number: int) -> str:
    return f"{results.DONE}/{run}/{number:02}"


# Documents that are not worth a language model's time are filtered before anything is spent on them.
#
# A filtered document is a row of the output like any other: an error whose reason begins with "filtered:".
# It is not counted as a failure (--strict, --max-error-rate), since nothing went wrong.


Keys = npt.NDArray[np.uint64]
Digests = tuple[Keys, Keys]  # keys of a file's sources, and digests of its documents' content


@dataclass(frozen=True)
class Filters:
    """The rules of `input`, and the sorted keys of documents whose content has come `before`."""

    input: Input
    before: Keys = field(default_factory=lambda: np.empty(0, np.uint64))

    def marked(self, table: pa.Table) -> pa.Table:
        """The DOCUMENT rows; the filtered ones have the reason in `error`."""
        if not (self.input.min_characters or self.input.max_characters or len(self.before)):
            return table
        lengths = pc.fill_null(pc.utf8_length(table["text"]), 0).to_pylist()
        again = [False] * len(table)
        if len(self.before):
            sources = keys([without_mark(source) for source in table["source"].to_pylist()])
            again = np.isin(sources, self.before).tolist()
        return failed(table, pa.array(map(self._reason, lengths, again), ERROR.type))

    def _reason(self, characters: int, twice: bool) -> str | None:
        shortest, longest = self.input.min_characters, self.input.max_characters
        if characters < shortest:
            return f"{FILTERED} a text of {characters} characters, less than input.min_characters {shortest}"
        if longest and characters > longest:
            return f"{FILTERED} a text of {characters} characters, more than input.max_characters {longest}"
        return f"{FILTERED} its text and picture have come before" if twice else None


def contents_of(address: str, fetch_official_images: bool) -> Digests:
    """Keys and digests of a file's documents that have no error, in order; 16 bytes a document."""
    sources, contents = [], []
    for table in documents(address, fetch_official_images=fetch_official_images):
        good = table.filter(pc.is_null(table["error"]))
        sources.append(keys(good["source"].to_pylist()))
        rows = good.select(["text", "image", "image_address"]).to_pylist()
        contents.append(b"".join(_content(r["text"], r["image"], r["image_address"]) for r in rows))
    both = np.concatenate([np.empty(0, np.uint64), *sources]), np.frombuffer(b"".join(contents), np.uint64)
    return both


def repeated(files: Iterable[Digests]) -> Keys:
    """Sorted keys of the documents that repeat the content of an earlier one, in the order of files and rows.
    It does not depend on what is done already."""
    found = list(files)
    sources = np.concatenate([np.empty(0, np.uint64), *(s for s, _ in found)])
    contents = np.concatenate([np.empty(0, np.uint64), *(c for _, c in found)])
    first = np.unique(contents, return_index=True)[1]
    later = np.ones(len(sources), bool)
    later[first] = False
    return np.sort(sources[later])


def _content(text: str, image: bytes | None, address: str | None) -> bytes:
    picture = image if image is not None else (address or "").encode()
    return hashlib.blake2b(text.encode() + b"\0" + picture, digest_size=8).digest()


_NONE: Mapping[str, int] = {}


@dataclass(frozen=True)
class Selection:
    """`limit`: only the first documents of the input, at most this number; `sample`: only this share of them,
    always the same documents. A later run without limit or sample does the others."""

    limit: int | None = None
    sample: float = 1.0

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise Mistake(f"--limit takes at least one document, not {self.limit}")
        if not 0 < self.sample <= 1:
            raise Mistake(f"--sample takes a share above 0, and at most 1, not {self.sample:g}")

    def of(
        self, inputs: Sequence[str], keys: Mapping[str, int] | None = None, whole: Mapping[str, int] = _NONE
    ) -> list[Share]:
        """What is taken of each file. `keys` by address, of files that had another; `whole`: documents of
        unchanged files (inputs.unchanged). With a limit, the other files are counted as far as it reaches."""
        shares, left = [], self.limit
        for address in inputs:
            if left is not None and left <= 0:
                break
            key = (keys or {}).get(address, file_key(address))
            shares.append(Share(address, key, left, self.sample, whole.get(address)))
            if left is not None:
                left -= min(left, whole[address] if address in whole else _counted(address, left))
        return shares

    def total(self, inputs: Sequence[str], whole: Mapping[str, int] = _NONE) -> int:
        """The approximate number of documents; 0 where everything would have to be read to know it."""
        numbers = [whole[address] if address in whole else count(address) for address in inputs]
        if any(number is None for number in numbers) and self.limit is None:
            return 0
        known = sum(number or 0 for number in numbers) or self.limit or 0
        return round(min(known, self.limit or known) * self.sample)


@dataclass(frozen=True)
class Share:
    """What is taken of one file: of the first `limit` documents, where there is one, the `sample`."""

    address: str
    key: int  # identifies the file: see job/index.py
    limit: int | None = None
    sample: float = 1.0
    whole: int | None = None  # documents, where the file has not changed since a run read it to its end

    def tables(self, done: Done, filters: Filters) -> Iterator[pa.Table]:
        """The file's documents that are taken and not `done`; filtered ones have an error. After all of the
        file was read, `done` saves what was not found in it. An unchanged file that is done is not read."""
        left, known, lost, number = self.limit, done.of(self.key), False, 0
        if self.whole is not None and known.all_done(self.whole):
            return
        for table in documents(self.address, fetch_official_images=filters.input.fetch_official_images):
            taken = table if left is None else table.slice(0, left)
            number += len(taken)
            lost = lost or is_rest(taken["source"][-1].as_py())
            if len(new := self._new(taken, known)):
                yield filters.marked(new)
            if left is not None and (left := left - len(taken)) <= 0:
                return
        if not lost:
            done.save_pass(self.key, known, number if self.sample == 1.0 else None)

    def _new(self, table: pa.Table, known: DoneInFile) -> pa.Table:
        """The documents of the sample that are to be done, with marks in their sources."""
        sources = table["source"].to_pylist()
        sampled = [True] * len(sources)
        if self.sample < 1:
            sampled = (keys(sources) <= np.uint64(min(self.sample * 2.0**64, 2.0**64 - 2048))).tolist()
        marks: list[str | None] = []
        for source, content, taken in zip(sources, digests(table).tolist(), sampled, strict=True):
            digest = REST_DIGEST if is_rest(source) else content
            state = known.classify(digest)
            mark = f"{source}#{self.key:016x}{digest:016x}{'!' if state == 'again' else ''}"
            marks.append(mark if taken and state != "done" else None)
        marked = table.set_column(table.column_names.index("source"), "source", pa.array(marks, pa.string()))
        return marked.filter(pc.is_valid(marked["source"]))


def _counted(address: str, most: int) -> int:
    """The number of documents in the file, at most `most`."""
    known = count(address)
    if known is not None:
        return min(known, most)
    rows = (1 for table in documents(address) for _ in range(len(table)))
    return sum(islice(rows, most))
