"""One mention as pages show it: its text, picture and candidates with their probabilities."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from typing import Any

from gemel_ray.knowledge import thumbnails
from gemel_ray.pictures.images import read_image
from gemel_ray.pictures.limits import ImageError

NIL = "NIL: none of them"
_SIDE = 96  # pixels of a thumbnail


@dataclass(frozen=True)
class Marked:
    """A text in three parts, the mention in the middle."""

    before: str
    mention: str = ""
    after: str = ""


@dataclass
class Named:
    """A candidate's name with the ids of all its entities."""

    name: str
    probability: float
    ids: list[str]


def marked(row: Mapping[str, Any]) -> Marked:
    """The parts of a row's text; the row has `text`, `mention`, `start` and `end`."""
    text: str = row["text"]
    if row["mention"] is None:  # the document as a whole
        return Marked(text)
    if row["start"] is None:  # its place is not known
        return Marked(f"{text} ", row["mention"])
    start, end = row["start"], row["end"]
    return Marked(text[:start], text[start:end], text[end:])


def candidates(link: Mapping[str, Any]) -> list[Named]:
    """A link's candidates, best first. The first name has the row's probability; another one's is lower by
    the difference of their scores. Entities that share a name share its probability: it is listed once."""
    named: dict[str, Named] = {}
    rows = link.get("candidates") or []
    for row in rows if link.get("probability") is not None else ():
        fall = 0.0 if row["score"] == rows[0]["score"] else row["score"] - rows[0]["score"]
        one = named.setdefault(row["entity"], Named(row["entity"], link["probability"] * exp(fall), []))
        if row["entity_id"] is not None:
            one.ids.append(row["entity_id"])
    return list(named.values())


def thumbnail(data: bytes | None, address: str | None) -> str | None:
    """A small picture as a data: URL, or None where it cannot be read."""
    if data is None and (address is None or "://" in address):
        return None
    try:
        image = read_image(data, address, target=_SIDE)
    except ImageError:
        return None
    return "data:image/jpeg;base64," + base64.b64encode(thumbnails.thumbnail(image, _SIDE)).decode()
