"""An entity as Wikidata's JSON dump has it, one a line of an array (latest-all.json.gz).

    {"type": "item", "id": "Q42", "labels": {"en": {"language": "en", "value": ...}}, "descriptions",
     "aliases": {"en": [...]}, "claims": {"P31": [{"mainsnak": {"datavalue": {"value": {"id": "Q5"}}}}]},
     "sitelinks": {"enwiki": {...}}}

Source: Wikibase's documentation, "JSON". Names are English where there are any, else those of any language
("mul"), else of the first that is there. Empty maps are written as [].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemel_ray.errors import Mistake

_LANGUAGES = ("en", "mul")


def fits(raw: Any) -> bool:
    """`labels` are by language."""
    return isinstance(raw, dict) and isinstance(raw.get("labels"), dict | list) and "name" not in raw


def renamed(raw: dict[str, Any]) -> dict[str, Any]:
    """The same entity in our words. ValueError: it is a property, or a lexeme."""
    kind = raw.get("type", "item")
    if kind != "item":
        raise Mistake(f"{raw.get('id')} is a {kind} of Wikidata, no item: left out")
    name, spoken = _spoken(_map(raw.get("labels")))
    aliases = _map(raw.get("aliases"))
    languages = dict.fromkeys((spoken, "mul"))
    return {
        "id": raw.get("id"),
        "name": name,
        "description": _spoken(_map(raw.get("descriptions")))[0],
        "aliases": [alias for language in languages for alias in aliases.get(language) or ()],
        "popularity": len(_map(raw.get("sitelinks"))),
        "types": _types(_map(raw.get("claims")).get("P31")),
    }


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _spoken(texts: Mapping[str, Any]) -> tuple[Any, str]:
    """The text in the language that is wanted most, and the language."""
    language = next((known for known in (*_LANGUAGES, *texts) if known in texts), "")
    return _map(texts.get(language)).get("value"), language


def _types(statements: Any) -> list[str]:
    """The items of an entity's `instance of`, but for statements without a value."""
    values = (
        _map(_map(_map(_map(statement).get("mainsnak")).get("datavalue")).get("value")).get("id")
        for statement in (statements if isinstance(statements, list) else ())
    )
    return [value for value in values if isinstance(value, str)]
