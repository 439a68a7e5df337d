"""What a document is known by from run to run: the file it is in, and a digest of what it says.

Not by its number in the file: a line put in or taken out would make every later document another. Of equal
documents in one file, any is as good as the other; how many there are counts. A worker is told by a mark
behind the document's source:

    pairs.jsonl:17#<file, 16 hex digits><digest, 16 hex digits>   and ! where an error row of it is there
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gemel_ray.readers import REST

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
