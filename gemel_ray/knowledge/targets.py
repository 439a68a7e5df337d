"""A gold mention's entity by its name in the knowledge base, where the data set gives an id or another name.

Names are what the language model writes and what is compared; WikiMEL's and MIMIC's files tell the Wikidata
id, and their spelling of the name need not be the knowledge base's.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property


class Targets:
    """Names by ids, of the (id, name) `pairs` of some entities, read when first asked."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._pairs = pairs

    @cached_property
    def _name_of(self) -> dict[str, str]:
        return dict(self._pairs)

    @cached_property
    def _names(self) -> set[str]:
        return set(self._name_of.values())

    def __contains__(self, name: str | None) -> bool:
        return name in self._names

    def name(self, target: str | None, target_id: str | None) -> str | None:
        """The target, if it is a name of the knowledge base; else the name of its id; else the target as it
        is, which may be None."""
        if target in self._names or target_id is None:
            return target
        return self._name_of.get(target_id, target)
