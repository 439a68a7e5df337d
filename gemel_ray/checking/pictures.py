"""A data set's pictures: there, decodable, used, and not those of the training data.

Each is read once, in threads. Knows nothing of texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from gemel_ray.errors import Mistake
from gemel_ray.pictures.images import FORMATS, image_bytes, read_image
from gemel_ray.pictures.limits import ImageError
from gemel_ray.readers.pictures import spellings

_ENDINGS = {
    ".jpg",
    ".jpeg",
    ".jfif",
    ".tif",
    ".svg",
    ".heic",
    ".heif",
    *(f".{name.lower()}" for name in FORMATS),
}
_THREADS = 8
_LONGEST = 300  # characters of a reason
_LONGEST_PATH = 4096


@dataclass(frozen=True)
class Seen:
    """What reading a picture said: the digest of its content, or why there is none."""

    digest: str | None = None
    missing: str | None = None
    corrupt: str | None = None


class Folder:
    """The pictures under a folder, by their names; raises ValueError where it is none."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise Mistake(f"{folder} is not a folder of pictures")
        inside = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _ENDINGS and p.is_file())
        self.folder, self.unused = folder, {str(p.resolve()): p for p in inside}
        self._of: dict[str, Path] = {p.name: p for p in inside}
        self._of |= {str(p.relative_to(folder)): p for p in inside}

    def find(self, key: str) -> str | None:
        """The address of the picture with this key, as releases spell it; of a URL its last part."""
        names = spellings(unquote(PurePosixPath(key).name)) if "://" in key else []
        found = next((self._of[n] for n in [*spellings(key), *names] if n in self._of), None)
        return str(found) if found else None

    def use(self, address: str) -> None:
        """A document has it."""
        if self.unused and "://" not in address and len(address) < _LONGEST_PATH:
            self.unused.pop(str(Path(address).resolve()), None)


class Reader:
    """Reads pictures, each address once."""

    def __init__(self, *, decode: bool) -> None:
        self.decode = decode
        self.known: dict[str, Seen] = {}

    def read(self, rows: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Seen]]:
        """The rows that have a picture (`image` or `image_address`), each with what reading it said."""
        have = [r for r in rows if r["image"] is not None or r["image_address"]]
        new = dict.fromkeys(
            r["image_address"] for r in have if r["image"] is None and r["image_address"] not in self.known
        )
        with ThreadPoolExecutor(_THREADS) as pool:
            self.known.update(zip(new, pool.map(lambda address: self._look(None, address), new), strict=True))
            carried = pool.map(lambda r: None if r["image"] is None else self._look(r["image"], None), have)
            for row, seen in zip(have, carried, strict=True):
                yield row, seen or self.known[row["image_address"]]

    def _look(self, data: bytes | None, address: str | None) -> Seen:
        try:
            if data is None and address and "://" not in address and not Path(address).exists():
                return Seen(missing=f"there is no {_cut_short(address)}")
            data = image_bytes(data, address)
            if self.decode:
                read_image(data, address)
        except (
            ImageError,
            OSError,
            ValueError,
        ) as fault:  # a path may be anything: longer than any, or bytes
            return Seen(corrupt=_cut_short(str(fault)))
        return Seen(hashlib.blake2b(data, digest_size=16).hexdigest())


def _cut_short(reason: str) -> str:
    """A message may quote a whole picture."""
    return reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]}..."
