"""What a row holds that no form reads: said, so that nothing is left out without a word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa

from gemel_ray.readers.fields import Row, is_unicode
from gemel_ray.readers.names import names_picture
from gemel_ray.readers.pictures import is_nothing, looks

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


def counted(table: pa.Table) -> dict[str, Counter[str]]:
    """Of documents: how many have each field that is not read, and each that looks like their picture."""
    others = Counter[str]()
    for names, number in Counter(table["unread"].drop_null().to_pylist()).items():
        others.update(dict.fromkeys(names.split(_SPACE), number))
    return {"unread": others, "unread_pictures": Counter(table["unread_picture"].drop_null().to_pylist())}


def said(measures: Mapping[str, Mapping[str, int]]) -> list[str]:
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
