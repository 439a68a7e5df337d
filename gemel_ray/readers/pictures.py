"""A document's picture: which of its fields it is, and its bytes or address, told from what the file says.

Nothing is opened here; knows nothing of what is in a picture.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa

from gemel_ray.characters import trimmed
from gemel_ray.readers.fields import (
    BadRecord,
    Row,
    ends_as_picture,
    inline,
    is_picture,
    is_unicode,
    looks_base64,
    looks_bytes,
    may_name_picture,
    names_picture,
    plainness,
    short,
    sound,
)

_NOTHING = ("", "nan", "none", "null", "<na>")  # as tables spell it
_INNER = ("bytes", "path", "url", "src", "file_name", "image_url", "image")  # of an object
# Where releases keep pictures: beside the file, or in folders so named (MIMIC, MELBench, WikiDiverse).
_FOLDERS = ("mention_image", "mention_images", "images", "KVQAimgs", "wikinewsImgs")


@dataclass(frozen=True)
class Place:
    """The file a row stands in, and whether pictures that are keys and URLs at once are to be fetched."""

    address: str
    fetch: bool

    @cached_property
    def name(self) -> str:
        """The file's own."""
        return PurePosixPath(self.address).name

    def beside(self, name: str) -> str:
        """The address of a name that is relative to the file."""
        return f"{self.address.rpartition('/')[0] or '.'}/{name}"

    def own(self, name: str) -> str:
        """The address of our own form's picture: taken at its word. Raises BadRecord for a URL without its
        beginning."""
        name = trimmed(name)
        if name.lower().startswith("www.") or (name.startswith("//") and not _is_file(name)):
            raise BadRecord(
                f"the picture's address {name!r:.60} is not a complete URL: one begins with https://"
            )
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
        """The picture that img2dataset keeps beside its Parquet, 00000/000000123.jpg, or the pair's JSON."""
        home, _, name = self.address.rpartition("/")
        folder = home if name == f"{key}.json" else self.address.removesuffix(".parquet")
        return _first([f"{folder}/{key}.{kind}" for kind in ("jpg", "png", "webp")])


def field_of(raw: Mapping[str, Any], *, pair: bool) -> str | None:
    """The field that is the picture: `image`, else one that holds a picture or a picture's file, else one
    whose name says so. A `url` is a picture's where the row is a released `pair`; else it may be a page's."""
    if not is_nothing(raw.get("image")):
        return "image"
    named = [name for name, value in raw.items() if may_name_picture(name) and not is_nothing(value)]
    if not named:
        return None
    certain = sorted(filter(names_picture, named), key=plainness)
    for names, fits in ((certain, _holds_bytes), (certain, looks), (named, looks)):
        if found := next((name for name in names if fits(raw[name])), None):
            return found
    urls = [name for name in ("url", "URL") if name in named and (pair or name == "URL")]
    return next((name for name in certain if _may_be(raw[name])), next(iter(urls), None))


def columns_of(value: Any, field: str, at: Place) -> Row:
    """The image columns of a picture's field: of a list its first. Raises BadRecord for what is none."""
    if isinstance(value, list):
        value = next((item for item in value if not is_nothing(item)), None)
    if is_nothing(value):
        return {}
    if isinstance(value, dict):
        inner = next((value[name] for name in _INNER if not is_nothing(value.get(name))), None)
        value = inner if isinstance(inner, (str, bytes)) else value
    if isinstance(value, bytes):
        if is_picture(value) or not (address := _as_address(value)):
            return {"image": value}
        value = address
    if not isinstance(sound(value, field), str):
        raise BadRecord(f"{field} cannot be {short(value)}: it is bytes, a path, a URL or base64")
    held = inline(value, field)
    return {"image_address": at.own(value)} if held is None else {"image": held}


def looks(value: Any) -> bool:
    """Whether a value is a picture, or names a picture's file; of a list or an object something in it."""
    if isinstance(value, list):
        return any(_looks_alone(item) or (isinstance(item, dict) and looks(item)) for item in value[:3])
    if isinstance(value, dict):
        return any(_looks_alone(value[name]) for name in _INNER if name in value)
    return _looks_alone(value)


def _looks_alone(value: Any) -> bool:
    if isinstance(value, bytes):
        return is_picture(value) or ends_as_picture(_as_address(value))
    if not isinstance(value, str):
        return False
    if value.lstrip()[:11].lower() == "data:image/" or looks_base64(value) or looks_bytes(value):
        return True
    return ends_as_picture(value) and len(value) < 2048 and "\n" not in value.strip()


def is_nothing(value: Any) -> bool:
    """Whether a table's value says that there is none: null, NaN, an empty text or list."""
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, str):
        return value.strip().lower() in _NOTHING
    if isinstance(value, dict):
        return all(value.get(name) in (None, "", b"") for name in _INNER) and not value.keys() - set(_INNER)
    return value is None or value in ([], b"")


def _holds_bytes(value: Any) -> bool:
    return isinstance(value.get("bytes") if isinstance(value, dict) else value, bytes)


def _may_be(value: Any) -> bool:
    return isinstance(value, (str, bytes, list, dict))


def _as_address(value: bytes) -> str:
    """Bytes that are a path or URL, as some tables keep every text."""
    try:
        text = value.decode() if len(value) < 2048 else ""
    except UnicodeDecodeError:
        return ""
    return text if text.isprintable() and ("://" in text or ends_as_picture(text)) else ""


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


# What a row holds that no form reads: said, so that nothing is left out without a word.


_MOST = 12  # fields that are named
_SPACE = "\n"  # between the names in a document's column


def unread(raw: Mapping[str, Any], read: Collection[str], *, pictured: bool) -> Row:
    """The document's columns of what it came with and is not read; of a document without a picture also the
    field that looks like one."""
    left = [n for n in raw if n not in read and not is_nothing(raw[n]) and is_unicode(n)]
    if not left:
        return {}
    field = None if pictured else next((n for n in left if names_picture(n) or looks(raw[n])), None)
    return {"unread": _SPACE.join(left) or None, "unread_picture": field}


def unread_counts(table: pa.Table) -> dict[str, Counter[str]]:
    """Of documents: how many have each field that is not read, and each that looks like their picture."""
    others = Counter[str]()
    for names, number in Counter(table["unread"].drop_null().to_pylist()).items():
        others.update(dict.fromkeys(names.split(_SPACE), number))
    return {"unread": others, "unread_pictures": Counter(table["unread_picture"].drop_null().to_pylist())}


def unread_lines(measures: Mapping[str, Mapping[str, int]]) -> list[str]:
    """In words, the pictures that were left out, by field, and the fields that no form reads."""
    pictures, others = measures.get("unread_pictures", {}), measures.get("unread", {})
    lines = []
    if pictures:
        lines.append(
            f"{sum(pictures.values()):,} documents came with something that looks like a picture and is not "
            f"read: {_listed(pictures)} (docs/inputs.md says what is)"
        )
    if others:
        lines.append(f"fields that are not read: {_listed(others)}")
    return lines


def _listed(counts: Mapping[str, int]) -> str:
    shown = [f"{name:.40} in {number:,}" for name, number in Counter(counts).most_common(_MOST)]
    return ", ".join(shown) + (f" and {len(counts) - _MOST} more" if len(counts) > _MOST else "")
