"""Documents that are not worth a language model's time: said so before anything is spent on them.

A filtered document is a row of the output like any other: an error whose reason begins with "filtered:". It
is not counted as a failure (--strict, --max-error-rate), since nothing went wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gemel_ray.job.identity import plain
from gemel_ray.job.results import Keys, keys
from gemel_ray.readers import documents
from gemel_ray.settings import Input
from gemel_ray.stage import ERROR
from gemel_ray.tables import failed

FILTERED = "filtered:"
Digests = tuple[Keys, Keys]  # of a file's documents: keys of their sources, and digests of their content


@dataclass(frozen=True)
class Filters:
    """`input`'s rules, and the sorted keys of documents whose content has come `before`."""

    input: Input
    before: Keys = field(default_factory=lambda: np.empty(0, np.uint64))

    def marked(self, table: pa.Table) -> pa.Table:
        """DOCUMENT rows, those filtered with the reason in `error`."""
        length = pc.fill_null(pc.utf8_length(table["text"]), 0).to_numpy()
        again = np.isin(keys([plain(s) for s in table["source"].to_pylist()]), self.before)
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


def digests(address: str, fetch_official_images: bool) -> Digests:
    """Of a file's documents that have no error, in order; 16 bytes each."""
    sources, contents = [], []
    for table in documents(address, fetch_official_images=fetch_official_images):
        good = table.filter(pc.is_null(table["error"]))
        sources.append(keys(good["source"].to_pylist()))
        rows = good.select(["text", "image", "image_address"]).to_pylist()
        contents.append(b"".join(_digest(r["text"], r["image"], r["image_address"]) for r in rows))
    both = np.concatenate([np.empty(0, np.uint64), *sources]), np.frombuffer(b"".join(contents), np.uint64)
    return both


def repeated(files: Iterable[Digests]) -> Keys:
    """Sorted keys of the documents whose content an earlier one has, in the order of files and rows: the
    same whatever a run has done already."""
    found = list(files)
    sources = np.concatenate([np.empty(0, np.uint64), *(s for s, _ in found)])
    contents = np.concatenate([np.empty(0, np.uint64), *(c for _, c in found)])
    first = np.unique(contents, return_index=True)[1]
    later = np.ones(len(sources), bool)
    later[first] = False
    return np.sort(sources[later])


def _digest(text: str, image: bytes | None, address: str | None) -> bytes:
    picture = image if image is not None else (address or "").encode()
    return hashlib.blake2b(text.encode() + b"\0" + picture, digest_size=8).digest()
