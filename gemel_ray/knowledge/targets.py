"""A gold mention's entity by its name in the knowledge base, where the data set gives an id or another name.

Names are what the language model writes and what is compared. WikiMEL's and MIMIC's files tell the Wikidata
id, and their spelling of the name need not be the knowledge base's; others tell nothing but an id.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from urllib.parse import unquote

from gemel_ray.characters import normal


class Targets:
    """Names by ids, of the (id, name) `pairs` of some entities, read when first asked. Of an id that is there
    twice the first name counts; every name stays one. `doubts`: targets asked for that are a name and another
    entity's id."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._pairs = pairs
        self.doubts = 0

    @cached_property
    def _read(self) -> tuple[dict[str, str], set[str]]:
        name_of: dict[str, str] = {}
        names: set[str] = set()
        for identity, name in self._pairs:
            names.add(name)
            name_of.setdefault(identity, name)
        return name_of, names

    @cached_property
    def _loose(self) -> dict[str, str]:
        """Names by their loose spelling, of those that have another."""
        return {loose: name for name in self._read[1] if (loose := _loosely(name)) != name}

    def __contains__(self, name: str | None) -> bool:
        return name in self._read[1]

    def name(self, target: str | None, target_id: str | None) -> str | None:
        """The target, if it is a name of the knowledge base; else the name of its id; else, where the target
        is itself an id or a name spelled as an address spells it, that entity's name; else the target as it
        is, which may be None."""
        name_of, names = self._read
        wanted = normal(target) if target else None
        if wanted in names:
            self.doubts += target_id is None and name_of.get(wanted or "", wanted) != wanted
            return wanted
        if target_id is not None and (known := name_of.get(target_id) or name_of.get(_last(target_id))):
            return known
        if not wanted:
            return target
        if (known := name_of.get(wanted) or name_of.get(_last(wanted))) is not None:
            return known
        loose = _loosely(wanted)
        return loose if loose in names else self._loose.get(loose, wanted)


def _last(known_by: str) -> str:
    """Of http://www.wikidata.org/entity/Q42, Q42; of 42.0, as tables write whole numbers beside gaps, 42."""
    return known_by.rpartition("/")[2] if "://" in known_by else known_by.removesuffix(".0")


def _loosely(name: str) -> str:
    """As a page's address and its title are both spelled: Mercury_(planet)."""
    if "://" in name:
        name = unquote(name.rpartition("/")[2].partition("#")[0])
    return normal(name.replace("_", " ").replace("\u2019", "'"))
