"""A document's picture: which field has it, and its bytes or address.

No picture is opened here; knows nothing of what is in a picture.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

import fsspec
import pyarrow as pa

from gemel_ray.readers.fields import (
    BadRecord,
    ends_as_picture,
    is_not_called_image,
    is_unicode,
    may_name_picture,
    names_picture,
    short,
    trimmed,
    valid_text,
)
from gemel_ray.records import Row

_NOTHING = ("", "nan", "none", "null", "<na>")  # as tables spell it
_INNER = ("bytes", "path", "url", "src", "file_name", "image_url", "image")  # of an object
# Where releases keep pictures: beside the file, or in these folders (MIMIC, MELBench, WikiDiverse).
_FOLDERS = ("mention_image", "mention_images", "images", "KVQAimgs", "wikinewsImgs")


@dataclass(frozen=True)
class SourceFile:
    """The file of a row, and whether to fetch pictures whose key is a URL."""

    address: str
    fetch: bool

    @cached_property
    def name(self) -> str:
        """The file's name, without its folder."""
        return PurePosixPath(self.address).name

    def beside(self, name: str) -> str:
        """The address of a name that is relative to the file."""
        return f"{self.address.rpartition('/')[0] or '.'}/{name}"

    def address_of(self, name: str) -> str:
        """The address of the native form's picture, as it is written. Raises BadRecord for a URL without its
        scheme."""
        name = trimmed(name)
        if name.lower().startswith("www.") or (name.startswith("//") and not _is_file(name)):
            raise BadRecord(
                f"the picture's address {name!r:.60} is not a complete URL: one begins with https://"
            )
        return name if "://" in name or name.startswith("/") else self.beside(name)

    def keyed(self, key: str) -> dict[str, str | None]:
        """Image columns of a key into a feature file. The key is also the picture if a file of that name is
        beside the input, or, if so configured, if it is a URL."""
        if "://" in key:
            return {"image_key": key, "image_address": key if self.fetch else None}
        return {"image_key": key, "image_address": _first([self.beside(key)])}

    def released(self, key: str) -> dict[str, str | None]:
        """As `keyed`, also for the folders and file names that releases use."""
        folders = _existing(self.beside(""))
        found = _first([f + n for f in folders for n in spellings(key)])
        return {"image_key": key, "image_address": found} if found else self.keyed(key)

    def downloaded(self, key: str) -> str | None:
        """The picture that img2dataset puts beside its Parquet, 00000/000000123.jpg, or the pair's JSON."""
        home, _, name = self.address.rpartition("/")
        folder = home if name == f"{key}.json" else self.address.removesuffix(".parquet")
        return _first([f"{folder}/{key}.{kind}" for kind in ("jpg", "png", "webp")])


def field_of(raw: Mapping[str, Any], *, pair: bool) -> str | None:
    """The picture's field: `image`, else one with a picture or a picture's file name, else one whose name
    says so. A `url` is a picture's if the row is a released `pair`; else it may be a page's."""
    if not is_nothing(raw.get("image")):
        return "image"
    named = [name for name, value in raw.items() if may_name_picture(name) and not is_nothing(value)]
    if not named:
        return None
    certain = sorted(filter(names_picture, named), key=is_not_called_image)
    for names, fits in ((certain, _holds_bytes), (certain, looks_like_picture), (named, looks_like_picture)):
        if found := next((name for name in names if fits(raw[name])), None):
            return found
    urls = [name for name in ("url", "URL") if name in named and (pair or name == "URL")]
    others = (name for name in certain if isinstance(raw[name], (str, bytes, list, dict)))
    return next(others, next(iter(urls), None))


def columns_of(value: Any, field: str, at: SourceFile) -> Row:
    """The image columns of a picture's field (a list's first). Raises BadRecord for another kind of value."""
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
    if not isinstance(valid_text(value, field), str):
        raise BadRecord(f"{field} cannot be {short(value)}: it is bytes, a path, a URL or base64")
    data = inline(value, field)
    return {"image_address": at.address_of(value)} if data is None else {"image": data}


def looks_like_picture(value: Any) -> bool:
    """Whether a value, or something in a list or an object, is a picture or names a picture's file."""
    if isinstance(value, list):
        return any(
            _item_looks_like_picture(item) or (isinstance(item, dict) and looks_like_picture(item))
            for item in value[:3]
        )
    if isinstance(value, dict):
        return any(_item_looks_like_picture(value[name]) for name in _INNER if name in value)
    return _item_looks_like_picture(value)


def _item_looks_like_picture(value: Any) -> bool:
    if isinstance(value, bytes):
        return is_picture(value) or ends_as_picture(_as_address(value))
    if not isinstance(value, str):
        return False
    if value.lstrip()[:11].lower() == "data:image/" or looks_like_base64(value) or looks_like_bytes(value):
        return True
    return ends_as_picture(value) and len(value) < 2048 and "\n" not in value.strip()


def is_nothing(value: Any) -> bool:
    """Whether a value means none: null, NaN, an empty text or list."""
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, str):
        return value.strip().lower() in _NOTHING
    if isinstance(value, dict):
        return all(value.get(name) in (None, "", b"") for name in _INNER) and not value.keys() - set(_INNER)
    return value is None or value in ([], b"")


def _holds_bytes(value: Any) -> bool:
    return isinstance(value.get("bytes") if isinstance(value, dict) else value, bytes)


def _as_address(value: bytes) -> str:
    """The path or URL in bytes, as some tables store every text; "" where there is none."""
    try:
        text = value.decode() if len(value) < 2048 else ""
    except UnicodeDecodeError:
        return ""
    return text if text.isprintable() and ("://" in text or ends_as_picture(text)) else ""


def spellings(key: str) -> list[str]:
    """The names that a release may have given the picture's file: the key, its last part, and the JPEG that
    MIMIC made of it (its codes/utils/dataset.py, choose_image: the name up to its first dot, .jpg). For a
    URL, the last part as WikiDiverse's readers find it: by its MD5, with SVG replaced by PNG."""
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
    """The file's folder and the release folders that exist there, each with a final slash."""
    filesystem, path = fsspec.core.url_to_fs(home)
    inner = [name for name in _FOLDERS if filesystem.isdir(f"{path.rstrip('/')}/{name}")]
    return [home, *(f"{home}{name}/" for name in inner)]


# Fields that no form reads: they are reported, so that nothing is left out silently.


_MOST = 12  # fields named in a message
_SPACE = "\n"  # between the names in a document's column


def unread(raw: Mapping[str, Any], read: Collection[str], *, pictured: bool) -> Row:
    """The document's columns of the fields that are not read, and, if it has no picture, of the one that
    looks like a picture."""
    left = [n for n in raw if n not in read and not is_nothing(raw[n]) and is_unicode(n)]
    if not left:
        return {}
    likely = (n for n in left if names_picture(n) or looks_like_picture(raw[n]))
    return {"unread": _SPACE.join(left) or None, "unread_picture": None if pictured else next(likely, None)}


def unread_counts(table: pa.Table) -> dict[str, Counter[str]]:
    """How many documents have each unread field, and each unread field that looks like their picture."""
    others = Counter[str]()
    for names, number in Counter(table["unread"].drop_null().to_pylist()).items():
        others.update(dict.fromkeys(names.split(_SPACE), number))
    return {"unread": others, "unread_pictures": Counter(table["unread_picture"].drop_null().to_pylist())}


def unread_lines(measures: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Messages about the pictures that were left out, by field, and the fields that no form reads."""
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


_BASE64 = re.compile(r"[A-Za-z0-9+/_=\s-]+")
_LONGEST_PATH = 4096  # characters that a file's address may have
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"<svg", b"<?xml")


def is_picture(head: bytes) -> bool:
    """Whether bytes begin as a picture of a known kind does."""
    if head.startswith(_STARTS):
        return True
    bitmap = head.startswith(b"BM") and head[6:10] == b"\0\0\0\0"
    return bitmap or (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or head[4:8] == b"ftyp"


def inline(value: str, field: str) -> bytes | None:
    """The picture in a data: URL, in base64, or in bytes that were decoded as Latin-1; None for an address.
    Raises BadRecord."""
    value = value.strip()
    if value[:5].lower() == "data:":
        kind, comma, rest = value.partition(",")
        if not comma or not kind.lower().endswith(";base64"):
            raise BadRecord(f"{field}: a data: URL of an image is in base64: data:image/jpeg;base64,...")
        return base64_bytes(unquote(rest), field)
    if looks_like_bytes(value):
        try:
            return value.encode("latin-1")
        except UnicodeEncodeError as fault:
            raise BadRecord(f"{field}: its bytes were damaged on the way: write them as base64") from fault
    if looks_like_base64(value):
        return base64_bytes(value, field)
    if len(value) > _LONGEST_PATH:
        raise BadRecord(f"{field} cannot be {value[:40]!r}... ({len(value):,} characters): "
                        "it is neither a path or URL nor a picture in base64")  # fmt: skip
    return None


def looks_like_bytes(value: str) -> bool:
    """Whether the text is a picture's bytes decoded as Latin-1, as some exports to JSON write them."""
    return not value[:32].isprintable() and is_picture(value[:64].encode("latin-1", "replace").lstrip(b"<"))


def looks_like_base64(value: str) -> bool:
    """Whether the text is a picture in base64: by its first bytes and its alphabet."""
    if len(value) < 40 or not _BASE64.fullmatch(value, 0, 4096):
        return False
    try:
        return is_picture(base64.b64decode("".join(value[:100].split())[:64].translate(_PLAIN)))
    except (binascii.Error, ValueError):
        return False


def base64_bytes(value: str, field: str = "image") -> bytes:
    """The bytes of base64, also in the URL-safe alphabet, and of a picture also without padding. Raises
    BadRecord."""
    joined = "".join(value.split()).translate(_PLAIN)
    bare = joined.rstrip("=")
    try:
        data = base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
        if len(joined) % 4 == 0 or is_picture(data):
            return data
    except (binascii.Error, ValueError):
        pass
    raise BadRecord(f"{field} is not base64: it begins with {value[:40]!r}")


_PLAIN = str.maketrans("-_", "+/")
