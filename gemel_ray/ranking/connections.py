"""What the knowledge graph says of a mention's candidates: facts of theirs that the text tells, and how they
are connected with the other entities that it names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gemel_ray.ranking.names import Names
from gemel_ray.ranking.triples import Keys, Triples
from gemel_ray.ranking.words import folded, key, stems

Vectors = npt.NDArray[np.float32]
Nodes = npt.NDArray[np.int32]
Numbers = npt.NDArray[np.int64]
CONNECTED = (
    # labels of its facts that stand in the text, whole or by their words, weighted by how rare they are
    "facts", "facts told", "facts told less", "rarest fact told", "facts' words", "facts' words less",
    # other entities that the text names: one stands at the end of a fact of its, it stands at the end of one
    # of theirs, they share rare facts
    "fact of another", "another's fact", "facts shared", "facts shared less",
)  # fmt: skip
_LONGEST = 5  # words of a name that is looked for in a text
_BEARERS, _OTHERS = 40, 200  # entities that one name may mean; that a text names
_COMMON = 1_000  # entities that share a fact: more connects nobody
_WORD = re.compile(r"[^\W_]+")
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Spoken:
    """What a text says beside its mention: all runs of its words, and which of them may be names."""

    forms: list[str]
    names: list[str]

    @classmethod
    def of(cls, text: str, mention: str) -> Spoken:
        """`mention` folded, `text` as it is written: a name begins with a capital."""
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
    """Asked for the features of one mention's candidates. `identity`: keys of all entities' ids, by row."""

    def __init__(self, triples: Triples, names: Names, identity: Keys) -> None:
        self._triples, self._names, self._identity = triples, names, identity
        rare = np.log(max(2, len(identity)) / np.maximum(1, triples.degree))
        self._weights = np.maximum(rare, 0).astype(np.float32)

    def __call__(self, rows: Numbers, mention: str, text: str) -> Vectors:
        """float32 [candidates, len(CONNECTED)]; `mention` folded, `text` as it is."""
        spoken = Spoken.of(text, mention)
        nodes, of = self._ends(self._identity[rows])
        parts = [
            np.log1p(np.bincount(of, minlength=len(rows)))[:, None],
            self._told(nodes, of, len(rows), spoken),
            self._words(nodes, of, len(rows), spoken),
            self._among(rows, nodes, of, self._others(spoken, rows)),
        ]
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def _ends(self, identities: Keys) -> tuple[Nodes, Numbers]:
        """The different nodes at the ends of these entities' facts, and whose, by place."""
        nodes, whose = self._triples.ends(identities)
        pairs = np.unique(whose << 32 | nodes)
        return (pairs & 0xFFFFFFFF).astype(np.int32), pairs >> 32

    def _told(self, nodes: Nodes, of: Numbers, count: int, spoken: Spoken) -> Vectors:
        forms = np.array([key(form) for form in spoken.forms], np.uint64)
        weights = self._weights[nodes] * np.isin(self._triples.form[nodes], forms)
        told, rarest = np.zeros(count, np.float32), np.zeros(count, np.float32)
        np.add.at(told, of, weights)
        np.maximum.at(rarest, of, weights)
        return np.stack([told, told - told.max(), rarest], axis=1)

    def _words(self, nodes: Nodes, of: Numbers, count: int, spoken: Spoken) -> Vectors:
        """Each word of an entity's facts counts once."""
        around = sorted(stems(" ".join(form for form in spoken.forms if " " not in form)))
        keys = np.array([key(word) for word in around], np.uint64)
        words, lengths = self._triples.words(nodes)
        said = np.isin(words, keys)
        order = np.argsort(keys)
        which = order[np.searchsorted(keys, words[said], sorter=order)] if said.any() else _NONE
        pairs = np.unique(np.repeat(of, lengths)[said] << 32 | which)
        telling = np.array([self._names.telling(word) for word in around], np.float32)
        worth = np.zeros(count, np.float32)
        np.add.at(worth, pairs >> 32, telling[pairs & 0xFFFFFFFF])
        return np.stack([worth, worth - worth.max()], axis=1)

    def _others(self, spoken: Spoken, rows: Numbers) -> tuple[Numbers, Vectors]:
        """Entities beside the candidates that the text may name, and how surely."""
        found: dict[int, float] = {}
        for form in spoken.names:
            bearers = self._names.named(form)
            if len(bearers) <= _BEARERS:
                for row in bearers.tolist():
                    found[row] = max(found.get(row, 0.0), 1 / len(bearers))
        surest = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:_OTHERS]
        return np.array([r for r, _ in surest], np.int64), np.array([w for _, w in surest], np.float32)

    def _among(self, rows: Numbers, nodes: Nodes, of: Numbers, others: tuple[Numbers, Vectors]) -> Vectors:
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
    """Which of `count` entities have which of the rising nodes, 0 or 1."""
    table = np.zeros((count, len(nodes)), np.float32)
    at = np.searchsorted(nodes, ends[0])
    among = at < len(nodes)
    among[among] = nodes[at[among]] == ends[0][among]
    table[ends[1][among], at[among]] = 1
    return table


def _places(wanted: Keys, among: Keys) -> Numbers:
    """The place of each key among others; -1: it is not there."""
    order = np.argsort(among)
    at = np.minimum(np.searchsorted(among, wanted, sorter=order), len(among) - 1)
    places: Numbers = np.where(among[order[at]] == wanted, order[at], -1)
    return places
