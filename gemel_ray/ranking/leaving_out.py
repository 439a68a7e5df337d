"""Leave-one-out: the examples that are hidden while the ranker is fitted on one of them.

Its document is hidden, so its entity has one example less. If all entities have similar numbers of examples,
this alone would reveal the right one. So one example of every other entity with several is hidden, too; which
one differs from question to question.
"""

from __future__ import annotations

import numpy as np

from gemel_ray.ranking.examples import NO_ENTITY, Examples
from gemel_ray.ranking.postings import Mask, Rows

_VIEWS = 16  # choices of hidden examples, which the questions use in turn


class LeftOut:
    """The views, each a mask over all examples."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        entity = examples.entity[: examples.bank.examples]
        order = np.argsort(entity, kind="stable")
        entities, first, count = np.unique(entity[order], return_index=True, return_counts=True)
        several = (entities != NO_ENTITY) & (count > 1)
        first, count = first[several], count[several]
        self._views = np.zeros((_VIEWS, len(entity)), np.bool_)
        for turn, view in enumerate(self._views):
            view[order[first + turn % count]] = True

    def of(self, turn: int, document: Rows) -> Mask:
        """The examples hidden from a question, except those of its `document`; `turn` numbers the
        questions."""
        hidden: Mask = self._views[turn % _VIEWS].copy()
        entities = np.unique(self._examples.entity[document])
        for entity in entities[entities != NO_ENTITY].tolist():
            hidden[self._examples.of(entity)] = False  # one is hidden already
        return hidden
