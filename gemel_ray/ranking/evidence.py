"""The candidates of a mention, and their features, one row per candidate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from gemel_ray.ranking.examples import NO_ENTITY
from gemel_ray.ranking.features import (
    SHORT,
    Case,
    Group,
    Question,
    SharedWords,
    Sources,
    Vectors,
    available,
    feature_names,
    features,
)
from gemel_ray.ranking.names import NameRow
from gemel_ray.ranking.postings import Mask, Rows, WeightedRows
from gemel_ray.ranking.words import content_words, folded, stems

MOST = 100  # candidates of a mention
_SHARING, _ALIKE, _INITIALS, _AROUND = 50, 12, 10, 10


@dataclass(frozen=True)
class Evidence:
    """Candidates, rows of the entities [n], and their features, float32 [n, features]."""

    rows: npt.NDArray[np.int64]
    features: Vectors


def undescribed(entity: NameRow) -> NameRow:
    """An entity without what comes from its description."""
    return entity | {"about": [], "years": []}


class Collector:
    """Collects the candidates of one mention at a time, and their features in these groups, or in all that
    are available. The `retrieved` nearest entities of a trained retrieval are candidates, too."""

    def __init__(self, sources: Sources, groups: Sequence[Group] | None = None, retrieved: int = 0) -> None:
        self.sources, self.retrieved = sources, retrieved
        self.groups = available(sources) if groups is None else tuple(groups)

    def without_descriptions(self) -> Collector:
        """A collector for the same entities without their descriptions."""
        nothing = np.broadcast_to(np.float16(0), self.sources.about.shape)
        return Collector(replace(self.sources, about=nothing, described=False), self.groups, self.retrieved)

    def evidence(self, asked: Question) -> Evidence:
        case = self._case(asked)
        if not len(case.rows):
            return Evidence(case.rows, np.empty((0, len(feature_names(self.groups))), np.float32))
        return Evidence(case.rows, features(self.sources, case, self.groups))

    def _case(self, asked: Question) -> Case:
        mention = folded(asked.mention)
        text, hidden = folded(asked.text), self._hidden(asked)
        prior, votes = self._prior(mention, hidden), self._votes(asked, hidden)
        words = self._words(mention, text, hidden)
        near = [*votes, *self._retrieved(asked)]
        rows = np.array(self._candidates(mention, prior, near, words), np.int64)
        known = self.sources.names.rows(rows)
        if not self.sources.described:
            known = list(map(undescribed, known))
        return Case(asked, hidden, mention, text, rows, known, prior, votes, words)

    def _hidden(self, asked: Question) -> Mask:
        """The hidden examples: those of the question's document, both when the ranker is fitted and when it
        answers, since it is meant for new documents, which are linked as a whole; and `left_out`."""
        known, hidden = self.sources.examples, asked.left_out
        hidden = np.zeros(known.bank.examples, np.bool_) if hidden is None else hidden.copy()
        hidden[known.of_document(asked.text, asked.picture)] = True
        return hidden

    def _words(self, mention: str, text: str, hidden: Mask) -> SharedWords:
        names, asked, around = self.sources.names, mention.split(), stems(text)
        return SharedWords(
            names.sharing_words(asked),
            names.sharing_words(content_words(text) - set(asked)),
            names.by_description(around if self.sources.described else ()),
            self.sources.examples.sharing_words(around, hidden),
        )

    def _prior(self, mention: str, hidden: Mask) -> Counter[int]:
        examples = self.sources.examples
        found = examples.with_mention(mention)
        counts = Counter(examples.entity[found[~hidden[found]]].tolist())
        del counts[NO_ENTITY]
        return counts

    def _votes(self, asked: Question, hidden: Mask) -> dict[int, float]:
        """Each entity's share of the neighbours' votes."""
        votes: dict[int, float] = {}
        for row, weight in zip(asked.nearest.tolist(), asked.votes.tolist(), strict=True):
            for entity in self._meant(row, hidden):
                votes[entity] = votes.get(entity, 0.0) + weight
        total = sum(votes.values())
        return {entity: vote / total for entity, vote in votes.items()} if total else {}

    def _meant(self, row: int, hidden: Mask) -> list[int]:
        """The entity of an example of the bank; all entities with the name, if it is a name."""
        known = self.sources.examples
        if row >= known.bank.examples:
            return self.sources.names.with_name(folded(known.bank.mention(row))).tolist()[:_SHARING]
        return [int(known.entity[row])] if known.entity[row] != NO_ENTITY and not hidden[row] else []

    def _candidates(
        self, mention: str, prior: Counter[int], near: list[int], words: SharedWords
    ) -> list[int]:
        """The best candidates of each source, without repetition. The sources are in order of priority."""
        names, short = self.sources.names, len(mention) <= SHORT
        text = (words.around, words.described)

        def first(rows: Rows, most: int) -> list[int]:
            return WeightedRows.unweighted(rows).best(most, text)

        sources = (
            [row for row, _ in prior.most_common(MOST // 3)],
            first(names.with_name(mention), _SHARING),
            near,
            first(names.abbreviated(mention), _INITIALS) if short else [],
            words.mention.best(_SHARING, text),
            names.similar(mention, _ALIKE),
            words.around.best(_AROUND, text[1:]),
            words.described.best(_AROUND, text[:1]),
            words.examples.best(_AROUND),
            first(names.reordered(mention), _INITIALS) if short else [],
        )
        return list(dict.fromkeys(row for rows in sources for row in rows))[:MOST]

    def _retrieved(self, asked: Question) -> list[int]:
        retrieval = self.sources.retrieval
        if not self.retrieved or retrieval is None or asked.mention_vector is None:
            return []
        return retrieval.nearest(self.retrieved, asked.mention_vector, asked.text_vector)
