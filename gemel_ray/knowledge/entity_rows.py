"""A row of a knowledge base, whatever its fields are called, as an entity.

An invalid id or name costs the entity, another invalid value only itself. Both are reported. Knows nothing of
files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from gemel_ray.errors import Mistake
from gemel_ray.knowledge.entities import Entity, Reject
from gemel_ray.readers import cells
from gemel_ray.readers.fields import BadRecord, identity, is_unicode, normal, short, valid_text

FIELDS = {  # the standard names, and other names of each
    "id": ("id", "qid", "wikidata_id", "entity_id", "kb_id", "identifier", "item"),
    "name": ("name", "label", "title", "entity", "entity_name", "itemlabel"),
    "description": ("description", "desc", "itemdescription", "abstract"),
    "aliases": ("aliases", "alias", "altlabel", "alt_labels", "itemaltlabel", "synonyms"),
    "popularity": ("popularity", "sitelinks", "count", "views"),
    "image": ("image", "image_path", "image_url"),
    "table": ("table",),
    "types": ("types", "type", "instance_of", "p31"),
}
_SEPARATOR = "|"  # of aliases and types in one field of text


def entity(raw: Any, reject: Reject = lambda reason: None) -> Entity:
    """An entity as it is stored. Raises ValueError if it is invalid; `reject` receives what else was left
    out."""
    if not isinstance(raw, dict):
        raise Mistake(f"an entity is an object with id and name, not {short(raw)}")
    given = raw
    if _is_mimic(raw):
        raw = _from_mimic(raw)
    elif _is_wikidata(raw):
        raw = _from_wikidata(raw)
    if "id" not in raw or "name" not in raw:
        raw = _with_standard_names(raw)
    identifier, name = _bare(identity(_plain(raw.get("id")))), _name(_plain(raw.get("name")))
    if identifier is None:
        raise Mistake(f"an entity needs an id, text or a whole number: {_not(raw.get('id'), given)}")
    if not name:
        raise Mistake(f"an entity needs a name: {_not(raw.get('name'), given)}")

    def dropped(field: str, value: Any, why: str) -> None:
        reject(f"the {field} {short(value)} of {identifier} is {why}: left out")

    aliases = list(_texts(raw.get("aliases"), "alias", dropped))
    return {
        "id": identifier,
        "name": name,
        "description": _description(raw, dropped),
        "aliases": [alias for alias in dict.fromkeys(map(normal, aliases)) if alias and alias != name],
        "popularity": _number(_plain(raw.get("popularity")), dropped),
        "image": _text(raw, "image", dropped),
        "types": list(_texts(raw.get("types"), "type", dropped)),
    }


def _with_standard_names(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    lower = {str(name).strip().lower(): value for name, value in raw.items()}
    return {
        field: next((lower[name] for name in names if lower.get(name) is not None), None)
        for field, names in FIELDS.items()
    }


def _bare(identifier: str | None) -> str | None:
    """An id without the address before it, as Wikidata's query service writes it."""
    return identifier.rpartition("/entity/")[2] if identifier and "://" in identifier else identifier


def _plain(value: Any) -> Any:
    """The value of {"value": ...}, as Wikidata's query service and dump write it; else the argument."""
    return value.get("value") if isinstance(value, dict) else value


def _name(value: Any) -> str | None:
    """A name on one line: a line break would end it for the language model. It may be a number."""
    name = identity(value)
    return normal(name) if name else None


def _not(value: Any, given: Mapping[str, Any]) -> str:
    """Why a value is not an id or a name; `given` is the row as it was read."""
    if isinstance(value, str):
        try:
            valid_text(value, "it")
        except BadRecord as fault:
            return str(fault)
    if value is None or value == "":
        return f"it has none (its fields are {', '.join(f'{name!s:.40}' for name in list(given)[:8])})"
    return f"{short(value)} is not one"


def _texts(value: Any, field: str, dropped: Any) -> Iterator[str]:
    """Several texts: a list of texts or of {"value": text}; by language; or one text, separated by |."""
    if isinstance(value, dict):
        value = [text for some in value.values() for text in (some if isinstance(some, list) else [some])]
    if isinstance(value, str):
        value = value.split(_SEPARATOR)
    for item in value if isinstance(value, list) else () if value is None else (value,):
        text = _plain(item)
        if not isinstance(text, str):
            dropped(field, item, "no text")
        elif not is_unicode(text):
            dropped(field, item, "not valid Unicode (half a surrogate pair)")
        elif text.strip():
            yield text.strip()


def _text(raw: Mapping[str, Any], field: str, dropped: Any) -> str | None:
    value = _plain(raw.get(field))
    if value is None or value == "":
        return None
    if isinstance(value, str) and is_unicode(value):
        return value
    surrogate = "not valid Unicode (half a surrogate pair)"
    dropped(field, value, surrogate if isinstance(value, str) else "not a text")
    return None


def _description(raw: Mapping[str, Any], dropped: Any) -> str | None:
    """The description, followed by the entity's table."""
    description, table = _text(raw, "description", dropped), raw.get("table")
    if table is None or table == "":
        return description
    try:
        return "; ".join(filter(None, (description, cells.row_of(table))))
    except BadRecord as fault:
        dropped("table", table, f"not understood: {fault}")
        return description


def _number(value: Any, dropped: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isfinite(number):
        return number
    dropped("popularity", value, "no number that a float holds")
    return None


# An entity of MIMIC's kb_entity.json.
#
#     {"id": a row number, "qid": "Q42", "entity_name": "a name", "desc", "attr": "Sex: ...", "image_list"}
#
# Source: pengfei-luo/MIMIC, codes/utils/dataset.py: entity_name percent-decoded, attr as its text,
# image_list. That `answer` means `qid` is seen from its qid2id. Read from code, not from data.


def _is_mimic(raw: Any) -> bool:
    """Recognised by `entity_name`, its field for the name."""
    return isinstance(raw, dict) and "entity_name" in raw


def _from_mimic(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entity with the standard names; of several pictures, the first."""
    name, pictures = raw["entity_name"], raw.get("image_list")
    return {
        "id": raw.get("qid"),
        "name": unquote(name).replace("_", " ") if isinstance(name, str) else name,
        "description": raw.get("desc") or raw.get("attr"),
        "image": pictures[0] if isinstance(pictures, list) and pictures else None,
    }


# An entity of Wikidata's JSON dump, one per line of an array (latest-all.json.gz).
#
#     {"type": "item", "id": "Q42", "labels": {"en": {"language": "en", "value": ...}}, "descriptions",
#      "aliases": {"en": [...]}, "claims": {"P31": [{"mainsnak": {"datavalue": {"value": {"id": "Q5"}}}}]},
#      "sitelinks": {"enwiki": {...}}}
#
# Source: Wikibase's documentation, "JSON". Names are English if there are any, else those of all languages
# ("mul"), else those of the first language. Empty maps are written as [].


_LANGUAGES = ("en", "mul")


def _is_wikidata(raw: Any) -> bool:
    """Recognised by `labels` by language."""
    return isinstance(raw, dict) and isinstance(raw.get("labels"), dict | list) and "name" not in raw


def _from_wikidata(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entity with the standard names. Raises ValueError for a property or a lexeme."""
    kind = raw.get("type", "item")
    if kind != "item":
        raise Mistake(f"{raw.get('id')} is a {kind} of Wikidata, no item: left out")
    name, language = _preferred_text(_map(raw.get("labels")))
    aliases = _map(raw.get("aliases"))
    languages = dict.fromkeys((language, "mul"))
    return {
        "id": raw.get("id"),
        "name": name,
        "description": _preferred_text(_map(raw.get("descriptions")))[0],
        "aliases": [alias for other in languages for alias in aliases.get(other) or ()],
        "popularity": len(_map(raw.get("sitelinks"))),
        "types": _types(_map(raw.get("claims")).get("P31")),
    }


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _preferred_text(texts: Mapping[str, Any]) -> tuple[Any, str]:
    """The text in the preferred language, and the language."""
    language = next((known for known in (*_LANGUAGES, *texts) if known in texts), "")
    return _map(texts.get(language)).get("value"), language


def _types(statements: Any) -> list[str]:
    """The items of an entity's `instance of`, without statements that have no value."""
    values = (
        _map(_map(_map(_map(statement).get("mainsnak")).get("datavalue")).get("value")).get("id")
        for statement in (statements if isinstance(statements, list) else ())
    )
    return [value for value in values if isinstance(value, str)]
