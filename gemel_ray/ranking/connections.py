"""Features from the knowledge graph: facts of a candidate that occur in the text, and its connections with
the other entities that the text names."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gemel_ray.knowledge.hashing import key
from gemel_ray.ranking.names import Names
from gemel_ray.ranking.postings import among
from gemel_ray.ranking.triples import Keys, Triples
from gemel_ray.ranking.words import folded, stems

Vectors = npt.NDArray[np.float32]
Nodes = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.int64]
CONNECTION_FEATURES = (
    # labels of its facts that occur in the text, whole or by their words, weighted by rarity
    "facts", "facts told", "facts told less", "rarest fact told", "facts' words", "facts' words less",
    # other entities that the text names: one is the object of a fact of the candidate, the candidate is the
    # object of a fact of one, both share rare facts
    "fact of another", "another's fact", "facts shared", "facts shared less",
)  # fmt: skip
_LONGEST = 5  # words of a name that is looked for in a text
_SAME_NAME, _OTHERS = 40, 200  # entities that one name may mean; that a text names
_COMMON = 1_000  # entities that share a fact: a more frequent fact is not evidence of a connection
_WORD = re.compile(r"[^\W_]+")
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class TextNames:
    """The text except its mention: all runs of its words, and those of them that may be names."""

    forms: list[str]
    names: list[str]

    @classmethod
    def of(cls, text: str, mention: str) -> TextNames:
        """The runs of `text`, which is not folded, since a name begins with a capital; `mention` is
        folded."""
        words = [(folded(word), not word[0].islower()) for word in _WORD.findall(text)]
        asked = mention.split()
        for at in range(len(words)):
            if [word for word, _ in words[at : at + len(asked)]] == asked:
                del words[at : at + len(asked)]
                break
        runs = {
            " ".join(word for word, _ in words[i:j]): words[i][1]
            for i in range(len(words))
            for j in range(i + 1, min(i + _LONGEST, len(words)) + 1)
        }
        return cls(list(runs), [form for form, named in runs.items() if named])


class Connections:
    """The features of a mention's candidates. `identity`: keys of all entities' ids, by row."""

    def __init__(self, triples: Triples, names: Names, identity: Keys) -> None:
        self._triples, self._names, self._identity = triples, names, identity
        rare = np.log(max(2, len(identity)) / np.maximum(1, triples.degree))
        self._weights = np.maximum(rare, 0).astype(np.float32)

    def __call__(self, rows: Numbers, mention: str, text: str) -> Vectors:
        """The features, float32 [candidates, len(CONNECTION_FEATURES)]; `mention` folded, `text` not."""
        text_names = TextNames.of(text, mention)
        nodes, of = self._ends(self._identity[rows])
        parts = [
            np.log1p(np.bincount(of, minlength=len(rows)))[:, None],
            self._facts_in_text(nodes, of, len(rows), text_names),
            self._fact_words(nodes, of, len(rows), text_names),
            self._connected(rows, nodes, of, self._others(text_names, rows)),
        ]
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def _ends(self, identities: Keys) -> tuple[Nodes, Numbers]:
        """The distinct nodes at the ends of these entities' facts, and for each the index of its entity."""
        nodes, whose = self._triples.ends(identities)
        pairs = np.unique(whose << 32 | nodes)
        return (pairs & 0xFFFFFFFF).astype(np.int32), pairs >> 32

    def _facts_in_text(self, nodes: Nodes, of: Numbers, count: int, text_names: TextNames) -> Vectors:
        forms = np.sort(np.array([key(form) for form in text_names.forms], np.uint64))
        weights = self._weights[nodes] * among(self._triples.form[nodes], forms)
        total, rarest = np.zeros(count, np.float32), np.zeros(count, np.float32)
        np.add.at(total, of, weights)
        np.maximum.at(rarest, of, weights)
        return np.stack([total, total - total.max(), rarest], axis=1)

    def _fact_words(self, nodes: Nodes, of: Numbers, count: int, text_names: TextNames) -> Vectors:
        """The weights of the words of facts that occur in the text; each word counts once."""
        around = sorted(stems(" ".join(form for form in text_names.forms if " " not in form)))
        keys = np.array([key(word) for word in around], np.uint64)
        words, lengths = self._triples.words(nodes)
        order = np.argsort(keys)
        in_text = among(words, keys[order])
        which = order[np.searchsorted(keys, words[in_text], sorter=order)] if in_text.any() else _NONE
        pairs = np.unique(np.repeat(of, lengths)[in_text] << 32 | which)
        weights = np.array([self._names.stem_weight(word) for word in around], np.float32)
        total = np.zeros(count, np.float32)
        np.add.at(total, pairs >> 32, weights[pairs & 0xFFFFFFFF])
        return np.stack([total, total - total.max()], axis=1)

    def _others(self, text_names: TextNames, rows: Numbers) -> tuple[Numbers, Vectors]:
        """Entities other than the candidates that the text may name, and the probability of each."""
        found: dict[int, float] = {}
        for form in text_names.names:
            entities_of_name = self._names.with_name(form)
            if len(entities_of_name) <= _SAME_NAME:
                for row in entities_of_name.tolist():
                    found[row] = max(found.get(row, 0.0), 1 / len(entities_of_name))
        likeliest = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:_OTHERS]
        return np.array([r for r, _ in likeliest], np.int64), np.array([w for _, w in likeliest], np.float32)

    def _connected(
        self, rows: Numbers, nodes: Nodes, of: Numbers, others: tuple[Numbers, Vectors]
    ) -> Vectors:
        entities, sure = others
        count = len(rows)
        to, back, shared = (np.zeros(count, np.float32) for _ in range(3))
        if len(entities):
            theirs, whose = self._ends(self._identity[entities])
            at = _places(self._triples.identity[nodes], self._identity[entities])
            linked = (at >= 0) & (entities[at] != rows[of])
            np.maximum.at(to, of[linked], sure[at[linked]])
            mine = _places(self._triples.identity[theirs], self._identity[rows])
            linked = (mine >= 0) & (entities[whose] != rows[mine])
            np.maximum.at(back, mine[linked], sure[whose[linked]])
            shared = self._shared(rows, (nodes, of), (theirs, whose), others)
        return np.stack([to, back, shared, shared - shared.max()], axis=1)

    def _shared(
        self,
        rows: Numbers,
        mine: tuple[Nodes, Numbers],
        theirs: tuple[Nodes, Numbers],
        others: tuple[Numbers, Vectors],
    ) -> Vectors:
        """The greatest weight of the facts that a candidate shares with one other entity."""
        common = np.intersect1d(mine[0], theirs[0])
        common = common[self._triples.degree[common] <= _COMMON]
        here = _table(common, mine, len(rows)) * self._weights[common]
        table = here @ _table(common, theirs, len(others[0])).T * others[1]
        table[rows[:, None] == others[0][None]] = 0
        best: Vectors = table.max(axis=1)
        return best


def _table(nodes: Nodes, ends: tuple[Nodes, Numbers], count: int) -> Vectors:
    """Whether each of `count` entities has each of the ascending nodes: 0 or 1."""
    table = np.zeros((count, len(nodes)), np.float32)
    at = np.searchsorted(nodes, ends[0])
    among = at < len(nodes)
    among[among] = nodes[at[among]] == ends[0][among]
    table[ends[1][among], at[among]] = 1
    return table


def _places(wanted: Keys, among: Keys) -> Numbers:
    """The index of each key in `among`; -1: it is not there."""
    order = np.argsort(among)
    at = np.minimum(np.searchsorted(among, wanted, sorter=order), len(among) - 1)
    places: Numbers = np.where(among[order[at]] == wanted, order[at], -1)
    return places
