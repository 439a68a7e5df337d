"""Pictures that stand in the row itself: bytes, base64 and data: URLs, for the job and the endpoint."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote

from gemel_ray.readers.fields import BadRecord

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
    """The picture in a data: URL, in base64, or in bytes that became the letters of the same numbers; None
    where the value is none of these, but an address. Raises BadRecord."""
    value = value.strip()
    if value[:5].lower() == "data:":
        kind, comma, rest = value.partition(",")
        if not comma or not kind.lower().endswith(";base64"):
            raise BadRecord(f"{field}: a data: URL of an image is in base64: data:image/jpeg;base64,...")
        return base64_bytes(unquote(rest), field)
    if looks_bytes(value):
        try:
            return value.encode("latin-1")
        except UnicodeEncodeError as fault:
            raise BadRecord(f"{field}: its bytes were damaged on the way: write them as base64") from fault
    if looks_base64(value):
        return base64_bytes(value, field)
    if len(value) > _LONGEST_PATH:
        raise BadRecord(f"{field} cannot be {value[:40]!r}... ({len(value):,} characters): "
                        "it is neither a path or URL nor a picture in base64")  # fmt: skip
    return None


def looks_bytes(value: str) -> bool:
    """Whether its letters are a picture's bytes, as JSON has them of tables that cannot spell bytes."""
    return not value[:32].isprintable() and is_picture(value[:64].encode("latin-1", "replace").lstrip(b"<"))


def looks_base64(value: str) -> bool:
    """Whether it is a picture in base64: by its first bytes, and by its letters."""
    if len(value) < 40 or not _BASE64.fullmatch(value, 0, 4096):
        return False
    try:
        return is_picture(base64.b64decode("".join(value[:100].split())[:64].translate(_PLAIN)))
    except (binascii.Error, ValueError):
        return False


def base64_bytes(value: str, field: str = "image") -> bytes:
    """What base64 spells, in the alphabet of URLs too, and of a picture without its last signs. Raises
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
