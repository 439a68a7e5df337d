"""A request's body: read no further than the limit, then taken as JSON or as a form.

Knows nothing of documents.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from gemel_ray.serving.faults import Fault

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{1,70}")
PATIENCE = 5.0  # seconds without a part of a body
_SLOWEST = 2**14  # bytes a second
FIELDS = ("text", "image", "table", "mentions", "id", "options")


@dataclass(frozen=True)
class Body:
    """`content` is the JSON value; of a form the same, with the picture's bytes beside it."""

    content: Any
    picture: bytes | None = None


async def read(
    headers: Headers, stream: AsyncIterator[bytes], limit: int, keep: Callable[[int], None]
) -> bytes:
    """The whole body, of which `keep` is called with each part's size. Raises Fault as soon as it is known to
    be larger than `limit` bytes, and when it stops arriving: who sends nothing, or a byte now and then, keeps
    no memory and no connection of ours."""
    fault = Fault("too_large", f"the request is larger than {limit:,} bytes")
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise fault
    received, began = bytearray(), time.monotonic()
    while True:
        left = began + PATIENCE + len(received) / _SLOWEST - time.monotonic()
        try:
            part = await asyncio.wait_for(anext(stream, None), min(left, PATIENCE))
        except TimeoutError as late:
            raise Fault("bad_request", "the request's body does not arrive, or too slowly") from late
        if part is None:
            return bytes(received)
        if len(received) + len(part) > limit:
            raise fault
        keep(len(part))
        received += part


async def parsed(headers: Headers, body: bytes) -> Body:
    """The body, by its content type. Raises Fault."""
    kind, _, rest = headers.get("content-type", "").partition(";")
    kind = kind.strip().lower()
    if kind == "application/json":
        return Body(as_json(body, "the body"))
    if kind == "multipart/form-data":
        return await _form(body, rest)
    raise Fault("bad_request", f"the content type cannot be {kind!r:.60}: send application/json or a form")


def as_json(text: bytes | str, what: str) -> Any:
    """The JSON value; a fault says where it is none."""
    try:
        return json.loads(text if isinstance(text, str) else text.decode())
    except UnicodeDecodeError as error:
        raise Fault("bad_request", f"{what} is not valid UTF-8") from error
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise Fault("bad_request", f"{what} is not JSON: {error.msg} ({at})") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, endless brackets
        raise Fault("bad_request", f"{what} is JSON that cannot be read") from error


async def _form(body: bytes, parameters: str) -> Body:
    boundary = _boundary(parameters)
    if not body.rstrip(b"\r\n").endswith(f"--{boundary}--".encode()):
        raise Fault("bad_request", "the form is cut short: its last boundary is missing")
    fields = await _fields(body, boundary)
    picture = fields.pop("image", None)
    content: dict[str, Any] = {}
    for name, value in fields.items():
        if not isinstance(value, str):
            raise Fault("bad_request", f"the form's {name} is a file; only image may be one")
        content[name] = as_json(value, f"the form's {name}") if name in ("mentions", "options") else value
    if isinstance(picture, bytes):
        return Body(content, picture)
    return Body(content | ({"image": picture} if picture else {}))


def _boundary(parameters: str) -> str:
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.lower() == "boundary" and _BOUNDARY.fullmatch(value.strip('"')):
            return value.strip('"')
    raise Fault("bad_request", "the form's content type names no boundary")


async def _fields(body: bytes, boundary: str) -> dict[str, str | bytes]:
    """Each field once: text as text, a file as bytes."""

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    # The parser reads what is no UTF-8 as Latin-1, and tells nobody. So all of it is read as that, and
    # decoded here.
    headers = Headers({"Content-Type": f'multipart/form-data; boundary="{boundary}"; charset=latin-1'})
    parser = MultiPartParser(
        headers, whole(), max_files=1, max_fields=len(FIELDS), max_part_size=len(body) + 1
    )
    found: dict[str, str | bytes] = {}
    try:
        form = await parser.parse()
        try:
            for raw, value in form.multi_items():
                if isinstance(value, UploadFile) and not value.filename and not value.size:
                    continue  # what a browser sends of a file that nobody chose
                _once(found, raw.encode("latin-1").decode())
                read = await value.read() if isinstance(value, UploadFile) else b""
                found[raw] = value.encode("latin-1").decode() if isinstance(value, str) else read
        finally:
            await form.close()
    except UnicodeError as error:
        raise Fault("bad_request", "the form is not valid UTF-8") from error
    except (MultiPartException, ValueError, KeyError) as error:
        said = getattr(error, "message", None) or "it is damaged"
        raise Fault("bad_request", f"the form cannot be read: {said}") from error
    return found


def _once(found: dict[str, str | bytes], name: str) -> None:
    if name not in FIELDS:
        raise Fault("bad_request", f"there is no form field {name!r:.60}: {', '.join(FIELDS)}")
    if name in found:
        raise Fault("bad_request", f"the form's {name} is given twice")
