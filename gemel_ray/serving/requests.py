"""From a body to a checked request, and from its documents to DOCUMENT rows.

A document is made by the functions of readers/, so that a row is the same as in the offline job, including
errors. What is wrong with one of several documents is that document's error; what is wrong with the only
one, or with the request, is a Fault. Knows nothing of HTTP except bytes and content types.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from gemel_ray.pictures.limits import ImageError, shown
from gemel_ray.readers import BadRecord, cells
from gemel_ray.readers.fields import TEXTS, is_unicode, text_of
from gemel_ray.readers.mentions import mentions
from gemel_ray.readers.pictures import base64_bytes, inline, is_nothing
from gemel_ray.records import DOCUMENT, Row
from gemel_ray.segments import Online
from gemel_ray.serving.schemas import Cell, Document, Fault, Many, One, Options, Span

_LEVELS: dict[Any, type[BaseModel]] = {"documents": Document, "options": Options, "mentions": Span}
TOO_LONG = "the text has {:,} characters; at most {:,} are taken"
Fetch = Callable[[str], bytes]  # from a picture's URL to its bytes; raises ImageError


@dataclass(frozen=True)
class Call:
    """A checked request: documents with their ids in `names`, and the options for all of them."""

    documents: tuple[Document, ...]
    names: tuple[str, ...]
    options: Options | None
    alone: bool  # sent as one document: its faults are the request's
    picture: bytes | None = None  # where it was sent as a form


def as_call(body: Body, request_id: str, limits: Online) -> Call:
    """The request in a body. Raises Fault with what is wrong, in one sentence."""
    content = body.content
    if not isinstance(content, dict):
        raise Fault("bad_request", f"a request is a JSON object, not {content!r:.60}")
    if "documents" in content:
        many = _valid(Many, content)
        documents, alone = tuple(many.documents), False
        if len(documents) > limits.documents:
            raise Fault(
                "too_large",
                f"{len(documents)} documents in one request; at most {limits.documents} are taken",
            )
        options = many.options
    else:
        one = _valid(One, content)
        documents, alone, options = (one,), True, one.options
    names = tuple(d.id or (request_id if alone else f"{request_id}:{n}") for n, d in enumerate(documents, 1))
    for name in names:
        if not is_unicode(name):
            raise Fault("bad_request", "an id holds half a surrogate pair: it is not valid Unicode")
    if len(set(names)) < len(names):
        raise Fault("bad_request", "two documents have the same id")
    return Call(documents, names, options, alone, body.picture)


def _valid(kind: type[Any], content: dict[str, Any]) -> Any:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise Fault("bad_request", _sentence(kind, error)) from error


def _sentence(kind: type[BaseModel], error: ValidationError) -> str:
    """The first of pydantic's errors, reworded where a slip is likely."""
    # For a choice of types pydantic reports all; the deepest is what was meant.
    first = max(
        _relevant(error.errors(include_url=False)),
        key=lambda e: (e["type"] == "extra_forbidden", len(e["loc"])),
    )
    *outer, last = first["loc"] or ("",)
    place = [p for p in outer if isinstance(p, int) or p.islower()]  # without names of types
    # An unknown field may have any name, also one that looks like a type's.
    place += [last] if isinstance(last, int) or last.islower() or first["type"] == "extra_forbidden" else []
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".")
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] == "extra_forbidden":
        level = next((_LEVELS[p] for p in reversed(place[:-1]) if p in _LEVELS), kind)
        known = sorted(level.model_fields)
        close = difflib.get_close_matches(str(place[-1]), known, n=1)
        if place[-1] in TEXTS and "text" in known:
            close = ["text"]
        return f"there is no field {where[:80]}; " + (
            f"did you mean {close[0]}?" if close else ", ".join(known)
        )
    return (
        f"{where or 'the request'}: {first['msg'][0].lower()}{first['msg'][1:]}, not {first['input']!r:.60}"
    )


def _relevant(errors: Sequence[Any]) -> Sequence[Any]:
    """The errors of a mention as a cell if it is a table's cell, else those of the other forms. (A mention
    may have any form, and pydantic reports the errors of all.)"""
    of_cells = [e for e in errors if Cell.__name__ in e["loc"]]
    missing = sum(e["type"] == "missing" for e in of_cells)
    return [e for e in errors if e not in of_cells] if missing == 2 or not of_cells else of_cells


def rows(call: Call, limits: Online, fetch: Fetch) -> list[pa.Table]:
    """A DOCUMENT table of one row for each document, with what `fetch` returns for its picture's URL. Raises
    Fault for what is wrong with a document that came alone."""
    return [_table(d, name, call, limits, fetch) for d, name in zip(call.documents, call.names, strict=True)]


def _table(document: Document, name: str, call: Call, limits: Online, fetch: Fetch) -> pa.Table:
    row: Row = {column: None for column in DOCUMENT.names} | {"document_id": name}
    row["options"] = call.options.model_dump() if call.options else None
    try:
        text, given = _mentions(document, limits)
        row |= {"text": text_of({"text": text}, "text"), "given": given}
        if call.alone and (errors := [m["error"] for m in given or () if m["error"]]):
            raise BadRecord(errors[0])
        row |= _picture(document.image, call.picture, fetch)
    except (BadRecord, ImageError) as bad:
        if call.alone:
            raise Fault("bad_request", str(bad)) from bad
        row["error"] = str(bad)
    except Fault as fault:
        if call.alone:
            raise
        row["error"] = fault.message
    return pa.Table.from_pylist([row], DOCUMENT)


def _mentions(document: Document, limits: Online) -> tuple[str, list[Row] | None]:
    """The text, a table's rows in it, and the mentions."""
    text, wanted = document.text, document.mentions
    _bounded(text, limits)
    if wanted is not None and len(wanted) > limits.mentions:
        raise Fault(
            "too_large", f"{len(wanted)} mentions in one document; at most {limits.mentions} are taken"
        )
    for mention in wanted or ():
        if isinstance(mention, str) and not is_unicode(mention):
            raise BadRecord("a mention holds half a surrogate pair: it is not valid Unicode")
    raws = None if wanted is None else [m if isinstance(m, str) else m.model_dump() for m in wanted]
    if document.table is None:
        return text, None if raws is None else _reject_overlaps(mentions(raws, text))
    text, found = cells.text_with_table(text, document.table, raws)
    _bounded(text, limits)
    return text, None if found is None else _reject_overlaps(found)


def _bounded(text: str, limits: Online) -> None:
    if len(text) > limits.characters:
        raise Fault("too_large", TOO_LONG.format(len(text), limits.characters))


def _reject_overlaps(mentions: list[Row]) -> list[Row]:
    """The mentions; one that overlaps an earlier one gets an error."""
    placed_ones = [m for m in mentions if m["error"] is None and m["start"] is not None]
    end, before = 0, ""
    for mention in sorted(placed_ones, key=lambda m: (m["start"], -m["end"])):
        if mention["start"] < end:
            mention["error"] = (
                f"the mention {mention['mention_id']} overlaps {before}: they may not share characters here; "
                "ask for them in two requests, or by gemel-ray link, which links both"
            )
        else:
            end, before = mention["end"], mention["mention_id"]
    return mentions


def _picture(image: str | None, picture: bytes | None, fetch: Fetch) -> Row:
    """The image columns. A fetched picture keeps its address, for messages."""
    if picture is not None:
        return {"image": picture}
    if image is None:
        return {}
    image = image.strip()
    if is_nothing(image):
        return {}
    if image.lower().startswith(("http://", "https://")):
        try:
            return {"image": fetch(image), "image_address": image}
        except ImageError as error:
            raise ImageError(f"cannot read the image {shown(image)}: {error}") from error
    if image[:5].lower() == "data:":
        return {"image": inline(image, "image")}
    if ":" in image[:32]:
        raise BadRecord(f"image cannot be {image!r:.60}: it is an http(s) URL, a data: URL or base64")
    try:
        return {"image": base64_bytes(image)}
    except BadRecord as error:
        raise BadRecord("image is neither an http(s) URL nor base64") from error


# A request's body: read up to the limit, then parsed as JSON or as a form.
#
# Knows nothing of documents.


_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{1,70}")
PATIENCE = 5.0  # seconds without a part of a body
_SLOWEST = 2**14  # bytes a second, below which a body is refused
FIELDS = ("text", "image", "table", "mentions", "id", "options")


@dataclass(frozen=True)
class Body:
    """`content` is the JSON value, or a form's fields as one; `picture`: the bytes of a form's picture."""

    content: Any
    picture: bytes | None = None


async def read(
    headers: Headers, stream: AsyncIterator[bytes], limit: int, keep: Callable[[int], None]
) -> bytes:
    """Read the whole body; `keep` is called with each part's size. Raises Fault as soon as it is known to be
    larger than `limit` bytes, and when it stops arriving: a client that sends nothing, or a byte now and
    then, must not occupy memory and a connection."""
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
    """The JSON value. Raises Fault that says where it is not JSON."""
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

    # The parser silently reads what is not UTF-8 as Latin-1. So all of it is read as Latin-1, and decoded
    # here.
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
                    continue  # a browser sends this where no file was chosen
                _check_field(found, raw.encode("latin-1").decode())
                read = await value.read() if isinstance(value, UploadFile) else b""
                found[raw] = value.encode("latin-1").decode() if isinstance(value, str) else read
        finally:
            await form.close()
    except UnicodeError as error:
        raise Fault("bad_request", "the form is not valid UTF-8") from error
    except (MultiPartException, ValueError, KeyError) as error:
        reason = getattr(error, "message", None) or "it is damaged"
        raise Fault("bad_request", f"the form cannot be read: {reason}") from error
    return found


def _check_field(found: dict[str, str | bytes], name: str) -> None:
    if name not in FIELDS:
        raise Fault("bad_request", f"there is no form field {name!r:.60}: {', '.join(FIELDS)}")
    if name in found:
        raise Fault("bad_request", f"the form's {name} is given twice")
