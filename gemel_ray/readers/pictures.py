"""Where a document's picture is: its address, told from what the file says of it.

Nothing is opened here; knows nothing of what is in a picture.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

import fsspec

# Where releases keep pictures: beside the file, or in folders so named (MIMIC, MELBench, WikiDiverse).
_FOLDERS = ("mention_image", "mention_images", "images", "KVQAimgs", "wikinewsImgs")


@dataclass(frozen=True)
class Place:
    """The file a row stands in, and whether pictures that are keys and URLs at once are to be fetched."""

    address: str
    fetch: bool

    def beside(self, name: str) -> str:
        """The address of a name that is relative to the file."""
        return f"{self.address.rpartition('/')[0] or '.'}/{name}"

    def own(self, name: str) -> str:
        """The address of our own form's picture: taken at its word."""
        return name if "://" in name or name.startswith("/") else self.beside(name)

    def keyed(self, key: str) -> dict[str, str | None]:
        """Image columns of a key into a feature file. It is taken as a picture when a file of that name
        lies beside the input, or, if so configured, fetched when it is a URL."""
        if "://" in key:
            return {"image_key": key, "image_address": key if self.fetch else None}
        return {"image_key": key, "image_address": _first([self.beside(key)])}

    def released(self, key: str) -> dict[str, str | None]:
        """As `keyed`, also in the folders that releases use, and under the names they give."""
        folders = _existing(self.beside(""))
        found = _first([f + n for f in folders for n in spellings(key)])
        return {"image_key": key, "image_address": found} if found else self.keyed(key)

    def downloaded(self, key: str) -> str | None:
        """The picture that img2dataset's files format keeps beside its Parquet: 00000/000000123.jpg."""
        home = self.address.removesuffix(".parquet")
        return _first([f"{home}/{key}.{kind}" for kind in ("jpg", "png", "webp")])


def spellings(key: str) -> list[str]:
    """The names a release may have given the picture's file: as it is called, its last part, and the JPEG
    that MIMIC made of it (its codes/utils/dataset.py, choose_image: the name up to its first dot, .jpg). Of a
    URL the last part as WikiDiverse's readers find it: by its MD5, SVG made PNG."""
    name = PurePosixPath(key).name
    if "://" not in key:
        return list(dict.fromkeys((key, name, f"{name.partition('.')[0]}.jpg")))
    suffix = PurePosixPath(name).suffix
    suffix = {".svg": ".png", ".SVG": ".png"}.get(suffix, suffix)
    return [name, hashlib.md5(name.encode(), usedforsecurity=False).hexdigest() + suffix]


def _first(addresses: list[str]) -> str | None:
    return next((a for a in addresses if _is_file(a)), None)


def _is_file(address: str) -> bool:
    filesystem, path = fsspec.core.url_to_fs(address)
    return bool(filesystem.isfile(path))


@lru_cache(maxsize=64)
def _existing(home: str) -> list[str]:
    """The file's own folder and those of the others that are there, each with its last slash."""
    filesystem, path = fsspec.core.url_to_fs(home)
    inner = [name for name in _FOLDERS if filesystem.isdir(f"{path.rstrip('/')}/{name}")]
    return [home, *(f"{home}{name}/" for name in inner)]
