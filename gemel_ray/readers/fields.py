"""What all forms share: a field's value and type, as text, id or number.

Knows nothing of files and forms. What is wrong with a whole document is a BadRecord.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gemel_ray.errors import Mistake

Row = dict[str, Any]
Numbered = tuple[int, Any]  # a row's number in its file, from 1, and the row or the BadRecord in its place
_NEAR = 20  # characters before and behind a fault that are shown
_WHOLE = re.compile(r"-?[0-9]{1,10}")
NIL = "NIL"  # as target_id: the entity is known not to be in the knowledge base


class BadRecord(Mistake):
    """Why a row of the input is not a document."""


def plain(fault: BaseException) -> str:
    """A fault's first line."""
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0]


def not_json(fault: BaseException) -> str:
    """Where and why a text could not be read as JSON."""
    if isinstance(fault, UnicodeDecodeError):
        return f"it is not UTF-8 at byte {fault.start + 1}: save the file as UTF-8"
    if not isinstance(fault, json.JSONDecodeError):
        return plain(fault)
    near = fault.doc[max(0, fault.pos - _NEAR) : fault.pos + _NEAR].strip()
    return f"{fault.msg.removesuffix(' at')} at character {fault.pos + 1}, near {short(near)}"


def typed(raw: Mapping[str, Any], field: str, kind: type | tuple[type, ...]) -> Any:
    """The field's value, or None where it has none. Raises BadRecord for another type."""
    value = raw.get(field)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise BadRecord(f"{field} cannot be {short(value)}")
    return sound(value, field)


def sound(value: Any, field: str) -> Any:
    """JSON can spell half a surrogate pair, which Arrow cannot hold; so are bytes read that are no UTF-8."""
    if isinstance(value, str) and not is_unicode(value):
        if any("\udc80" <= c <= "\udcff" for c in value):
            shown = short(value.encode("utf-8", "replace").decode())
            raise BadRecord(f"{field} is not UTF-8: {shown}; save the file as UTF-8")
        raise BadRecord(f"{field} holds half a surrogate pair: it is not valid Unicode")
    return value


def short(value: object, most: int = 60) -> str:
    """A value as a message shows it: cut short, and a text in quotes that close."""
    whole = value if isinstance(value, str) else repr(value)
    whole = whole if len(whole) <= most else f"{whole[:most]}..."
    return repr(whole) if isinstance(value, str) else whole


def is_unicode(text: str) -> bool:
    """JSON can spell what UTF-8, and so Arrow, cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_of(raw: Mapping[str, Any], field: str) -> str:
    """The document's text, as it stands. Raises BadRecord where there is none."""
    text = typed(raw, field, str)
    if text is None or not text.strip():
        raise BadRecord("the text is empty")
    return str(text)


def identity(value: object) -> str | None:
    """An id, or a name that may be one: text or a whole number, however that is written (3.0 is 3)."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.strip() or None if isinstance(value, str) and is_unicode(value) else None


def whole(value: object) -> int | None:
    """A whole number as int32 holds it, however it is written: 3, 3.0 or "3"."""
    written = identity(value)
    if written is None or not _WHOLE.fullmatch(written):
        return None
    number = int(written)
    return number if abs(number) < 2**31 else None
