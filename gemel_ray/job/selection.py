"""Which documents of the input a run takes: those not done yet, within a limit or a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gemel_ray.errors import Mistake
from gemel_ray.graph import failed
from gemel_ray.job.index import (
    REST_DIGEST,
    Done,
    DoneInFile,
    digests,
    file_key,
    is_rest,
    with_mark,
    without_mark,
)
from gemel_ray.job.results import Keys, keys
from gemel_ray.readers import count, documents
from gemel_ray.settings import Input
from gemel_ray.stage import ERROR

# Documents that are not worth a language model's time are filtered before anything is spent on them.
#
# A filtered document is a row of the output like any other: an error whose reason begins with "filtered:".
# It is not counted as a failure (--strict, --max-error-rate), since nothing went wrong.


FILTERED = "filtered:"
Digests = tuple[Keys, Keys]  # keys of a file's sources, and digests of its documents' content


@dataclass(frozen=True)
class Filters:
    """The rules of `input`, and the sorted keys of documents whose content has come `before`."""

    input: Input
    before: Keys = field(default_factory=lambda: np.empty(0, np.uint64))

    def marked(self, table: pa.Table) -> pa.Table:
        """The DOCUMENT rows; the filtered ones have the reason in `error`."""
        length = pc.fill_null(pc.utf8_length(table["text"]), 0).to_numpy()
        again = np.isin(keys([without_mark(s) for s in table["source"].to_pylist()]), self.before)
        reasons = [
            self._reason(int(characters), bool(twice))
            for characters, twice in zip(length, again, strict=True)
        ]
        return failed(table, pa.array(reasons, ERROR.type))

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
        sampled = (keys(sources) <= np.uint64(min(self.sample * 2.0**64, 2.0**64 - 2048))).tolist()
        at, marks = [], []
        for number, (source, content) in enumerate(zip(sources, digests(table).tolist(), strict=True)):
            digest = REST_DIGEST if is_rest(source) else content
            state = known.classify(digest)
            if state == "done" or not sampled[number]:
                continue
            at.append(number)
            marks.append(with_mark(source, self.key, digest, state == "again"))
        new = table.take(pa.array(at, pa.int64()))
        return new.set_column(new.column_names.index("source"), "source", pa.array(marks, pa.string()))


def _counted(address: str, most: int) -> int:
    """The number of documents in the file, at most `most`."""
    known = count(address)
    if known is not None:
        return min(known, most)
    rows = (1 for table in documents(address) for _ in range(len(table)))
    return sum(islice(rows, most))
