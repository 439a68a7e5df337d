"""Leave-one-out: which examples are hidden while the ranker is fitted on one of them.

Its document is hidden, so whom it means has an example less. Where all entities have about as many examples,
that alone would give the right one away. So one example of every other entity with several is hidden as
well; which one differs from question to question.
"""

from __future__ import annotations

import numpy as np

from gemel_ray.ranking.examples import NOBODY, Examples
from gemel_ray.ranking.postings import Mask, Rows

_VIEWS = 16  # so many choices of whom is hidden; the questions take turns


class LeftOut:
    """The views, each a mask over all examples."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples
        entity = examples.entity[: examples.bank.examples]
        order = np.argsort(entity, kind="stable")
        entities, first, count = np.unique(entity[order], return_index=True, return_counts=True)
        several = (entities != NOBODY) & (count > 1)
        first, count = first[several], count[several]
        self._views = np.zeros((_VIEWS, len(entity)), np.bool_)
        for turn, view in enumerate(self._views):
            view[order[first + turn % count]] = True

    def of(self, turn: int, document: Rows) -> Mask:
        """What is hidden, beside its `document`, from the question whose turn it is."""
        hidden: Mask = self._views[turn % _VIEWS].copy()
        for entity in np.unique(self._examples.entity[document]).tolist():
            hidden[self._examples.of(entity)] = False  # has lost one already
        return hidden
