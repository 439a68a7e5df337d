"""The baseline without any model, which a useful linker must beat.

A mention's answer is its most frequent target in the training files; else the entity with exactly this name;
else, among the names that contain all words of the mention, the most frequent target.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gemel_ray.evaluation.judged import Judged
from gemel_ray.evaluation.known import Known
from gemel_ray.records import Row

_WORD = re.compile(r"\w+")
_NOTHING: npt.NDArray[np.int64] = np.empty(0, np.int64)


@dataclass(frozen=True)
class Baseline:
    """Ties go to the shorter name, then to the order of the knowledge base."""

    known: Known

    def answer(self, mention: str) -> str | None:
        """An entity's name, or None."""
        if (targets := self.known.targets_of.get(mention)) is not None:
            return targets.most_common(1)[0][0]
        if mention in self.known.popularity:
            return mention
        return self._name_with(words(mention))

    def judged(self, others: Sequence[Judged]) -> list[Judged]:
        """The same gold mentions with this baseline's answers."""
        answers = {m: self.answer(m) for m in {j.gold["mention"] or "" for j in others}}
        return [Judged(j.gold, _link(answers[j.gold["mention"] or ""])) for j in others]

    def _name_with(self, wanted: set[str]) -> str | None:
        rows = sorted((self._rows_of_words.get(word, _NOTHING) for word in wanted), key=len)
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
    def _rows_of_words(self) -> dict[str, npt.NDArray[np.int64]]:
        """The rows of the names that contain each word, ascending."""
        rows: dict[str, list[int]] = defaultdict(list)
        for row, name in enumerate(self._names):
            for word in words(name):
                rows[word].append(row)
        return {word: np.asarray(found) for word, found in rows.items()}


def words(text: str) -> set[str]:
    """The text's words, without case."""
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
