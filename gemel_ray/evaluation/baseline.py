"""The baseline without any model: a linker worth running beats it.

A mention's answer is its most frequent target in the training files; else the entity of exactly its name;
else, of the knowledge base's names that hold all of its words, the one that was most often a target.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gemel_ray.evaluation.judged import Judged, Row
from gemel_ray.evaluation.known import Known

_WORD = re.compile(r"\w+")
_NOTHING: npt.NDArray[np.int64] = np.empty(0, np.int64)


@dataclass(frozen=True)
class Baseline:
    """Answers from what is known alone; ties go to the shorter name, then to the knowledge base's order."""

    known: Known

    def answer(self, mention: str) -> str | None:
        """An entity's name, or None."""
        if (targets := self.known.targets_of.get(mention)) is not None:
            return targets.most_common(1)[0][0]
        if mention in self.known.popularity:
            return mention
        return self._holding(words(mention))

    def judged(self, others: Sequence[Judged]) -> list[Judged]:
        """The same gold with this baseline's answers."""
        answers = {m: self.answer(m) for m in {j.gold["mention"] or "" for j in others}}
        return [Judged(j.gold, _link(answers[j.gold["mention"] or ""])) for j in others]

    def _holding(self, wanted: set[str]) -> str | None:
        rows = sorted((self._rows.get(word, _NOTHING) for word in wanted), key=len)
        if not rows:
            return None
        common = rows[0]
        for more in rows[1:]:
            common = np.intersect1d(common, more, assume_unique=True)
        found = (self._names[row] for row in common)
        return min(found, key=lambda name: (-self.known.targets[name], len(name)), default=None)

    @cached_property
    def _names(self) -> list[str]:
        return list(self.known.popularity)

    @cached_property
    def _rows(self) -> dict[str, npt.NDArray[np.int64]]:
        """Where each word stands in the list of names, ascending."""
        rows: dict[str, list[int]] = defaultdict(list)
        for row, name in enumerate(self._names):
            for word in words(name):
                rows[word].append(row)
        return {word: np.asarray(found) for word, found in rows.items()}


def words(text: str) -> set[str]:
    """Without case."""
    return set(_WORD.findall(text.casefold()))


def _link(entity: str | None) -> Row:
    return {
        "status": "nil" if entity is None else "linked",
        "entity": entity,
        "entity_id": None,
        "probability": None,
        "fingerprint": None,
        "ranked": () if entity is None else (entity,),
    }
