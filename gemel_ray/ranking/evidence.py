"""Which entities a mention may mean, and what speaks for each: one row of features a candidate."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gemel_ray.knowledge.entities import Entities
from gemel_ray.ranking.examples import NOBODY, Examples
from gemel_ray.ranking.names import Names
from gemel_ray.ranking.words import against_names, folded, stems, trigrams
from gemel_ray.ranking.years import compared, years

Vectors = npt.NDArray[np.float32]
MOST = 100  # candidates of a mention
_SHARING, _ALIKE, _SHORT = 50, 12, 6
_READ = 200  # examples of one entity that are compared
_TEMPERATURE = 0.02  # of the cosines of neighbours: one that is nearer by as much counts for e times

FEATURES = (
    # the examples of this very mention: for this entity, of all, who else
    "examples", "prior", "is known", "mentions known", "others only", "targets known",
    # its names
    "is the name", "is an alias", "words in the name", "words in an alias", "words shared", "like the name",
    "like an alias", "same last word", "same first word", "begins the name", "is its initials",
    # the text around it: against the description, by vectors and words; other words of the name there
    "description fits", "description fits less", "description fits bent", "description fits bent less",
    "description's words", "description's words less",
    "rest of the name in the text", "name in the text",
    # the years that the text and the description tell
    "years known", "begun by then", "within its years", "years from its middle",
    # the entity's examples, whatever their mention: how many, and how alike their texts and pictures are
    "examples at all", "likest text", "mean text", "has examples", "likest picture", "likest picture less",
    # neighbours by mention and picture
    "votes", "votes less",
    # how well known it is
    "popularity", "has popularity",
    # of the question as a whole
    "words of the name", "words more", "candidates", "name in brackets", "capital", "words", "has a picture",
)  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One mention. `text_vector` of unit length; `picture`: CLIP's feature of unit length, or None. `nearest`
    and `similarities`: rows of the bank and their cosines. `own`: the examples that are the question itself,
    which say nothing (fitting)."""

    mention: str
    text: str
    text_vector: Vectors
    picture: Vectors | None
    nearest: npt.NDArray[np.int64]
    similarities: Vectors
    own: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Evidence:
    """Candidates, rows of the entities [n], and their features, float32 [n, len(FEATURES)]."""

    rows: npt.NDArray[np.int64]
    features: Vectors


class Witness:
    """Everything that is known, asked for one mention at a time. `about`: vectors of what entities are
    described as, float16 [entities, width]; zeros: not described. `bend`: see context.py."""

    def __init__(
        self,
        names: Names,
        examples: Examples,
        entities: Entities,
        about: npt.NDArray[np.float16],
        bend: Vectors | None = None,
    ) -> None:
        self.names, self.examples, self.about, self.bend = names, examples, about, bend
        self._popularity = entities.table["popularity"]

    def evidence(self, asked: Question) -> Evidence:
        mention = folded(asked.mention)
        prior = self._prior(mention, asked)
        votes = self._votes(asked)
        shared = self.names.sharing(mention)
        rows = self._candidates(mention, prior, votes, shared)
        if not rows:
            return Evidence(np.empty(0, np.int64), np.empty((0, len(FEATURES)), np.float32))
        at = np.array(rows, np.int64)
        known = self.names.rows(at)
        parts = [
            self._of_prior(rows, prior),
            self._of_names(mention, known, [shared.get(row, 0.0) for row in rows]),
            self._of_text(mention, asked, at, known),
            self._of_examples(rows, asked),
            _less([votes.get(row, 0.0) for row in rows]),
            self._of_popularity(rows),
            _of_question(asked, mention, known),
        ]
        return Evidence(at, np.concatenate(parts, axis=1, dtype=np.float32))

    def _prior(self, mention: str, asked: Question) -> Counter[int]:
        found = [e for e in self.examples.meant(mention).tolist() if e not in asked.own]
        counts = Counter(self.examples.entity[found].tolist())
        del counts[NOBODY]
        return counts

    def _votes(self, asked: Question) -> dict[int, float]:
        """The neighbours' share of each entity, by how near they are."""
        votes: dict[int, float] = {}
        entities = self.examples.entity[asked.nearest].tolist()
        weights = np.exp((asked.similarities - 1) / _TEMPERATURE).tolist()
        for entity, weight in zip(entities, weights, strict=True):
            if entity != NOBODY:
                votes[entity] = votes.get(entity, 0.0) + weight
        total = sum(votes.values())
        return {entity: vote / total for entity, vote in votes.items()} if total else {}

    def _candidates(
        self, mention: str, prior: Counter[int], votes: dict[int, float], shared: dict[int, float]
    ) -> list[int]:
        exact = self.names.named(mention).tolist()
        short = self.names.abbreviated(mention).tolist()[:10] if len(mention) <= _SHORT else []
        near = sorted(shared, key=lambda row: (-shared[row], row))[:_SHARING]
        known = [row for row, _ in prior.most_common(MOST // 3)]
        alike = self.names.alike(mention, _ALIKE)
        return list(dict.fromkeys([*known, *exact[:_SHARING], *votes, *short, *near, *alike]))[:MOST]

    def _of_prior(self, rows: list[int], prior: Counter[int]) -> Vectors:
        total, targets = prior.total(), len(prior)
        return np.array(
            [
                [math.log1p(n), n / (total + 1), n > 0, math.log1p(total), total > 0 and n == 0, targets]
                for n in (prior[row] for row in rows)
            ],
            np.float32,
        )

    def _of_names(self, mention: str, known: list[dict[str, Any]], shared: list[float]) -> Vectors:
        words, grams = mention.split(), trigrams(mention)
        whole, all_of = sum(map(self.names.weight, words)) or 1.0, set(words)
        short = mention.replace(" ", "") if len(mention) <= _SHORT else ""
        return np.array(
            [
                against_names(
                    mention, words, all_of, grams, short, entity["name"], entity["aliases"], part / whole
                )
                for entity, part in zip(known, shared, strict=True)
            ],
            np.float32,
        )

    def _of_text(
        self, mention: str, asked: Question, rows: npt.NDArray[np.int64], known: list[dict[str, Any]]
    ) -> Vectors:
        text = folded(asked.text)
        around = stems(text) - stems(mention)
        words, inside = set(mention.split()), set(text.split())
        overlap = [sum(map(self.names.telling, set(e["about"]) & around)) for e in known]
        rest = [(set(e["name"].split()) - words) for e in known]
        named = [
            [len(r & inside) / max(1, len(r)), f" {e['name']} " in f" {text} "]
            for r, e in zip(rest, known, strict=True)
        ]
        spoken = years(asked.text)
        when = [compared(spoken, e["years"]) for e in known]
        plain = asked.text_vector
        bent = plain if self.bend is None else bend(plain, self.bend)
        fits = self.fits(rows, plain), self.fits(rows, bent)
        return np.concatenate([*fits, _less(overlap), np.array(named, np.float32), when], axis=1)

    def fits(self, rows: npt.NDArray[np.int64], text_vector: Vectors) -> Vectors:
        """How near descriptions are to a text, and how much less than the nearest. An entity without one is
        neither better nor worse than the others."""
        about = self.about[rows].astype(np.float32)
        fits, described = about @ text_vector, about.any(axis=1)
        return _less(np.where(described, fits, fits[described].mean() if described.any() else 0.0))

    def _of_examples(self, rows: list[int], asked: Question) -> Vectors:
        found = []
        for row in rows:
            examples = self.examples.of(row)[:_READ]
            if asked.own:
                examples = examples[~np.isin(examples, list(asked.own))]
            if not len(examples):
                found.append([0.0, 0.0, 0.0, 0.0, 0.0])
                continue
            similar = self.examples.fits(examples, asked.text_vector)
            looks = 0.0 if asked.picture is None else self.examples.looks(examples, asked.picture)
            found.append([math.log1p(len(examples)), similar.max(), similar.mean(), 1.0, looks])
        made = np.array(found, np.float32)
        return np.concatenate([made, made[:, 4:] - made[:, 4:].max()], axis=1)

    def _of_popularity(self, rows: list[int]) -> Vectors:
        given = [self._popularity[row].as_py() for row in rows]
        return np.array([[math.log1p(max(0.0, p or 0.0)), p is not None] for p in given], np.float32)


def _of_question(asked: Question, mention: str, known: list[dict[str, Any]]) -> Vectors:
    words, capital = len(mention.split()), asked.mention[:1].isupper()
    return np.array(
        [
            [
                n := len(e["name"].split()),
                n - words,
                len(known),
                e["bracket"],
                capital,
                words,
                asked.picture is not None,
            ]
            for e in known
        ],
        np.float32,
    )


def bend(texts: Vectors, matrix: Vectors) -> Vectors:
    """Vectors of texts, bent towards descriptions."""
    return texts + texts @ matrix


def _less(values: Any) -> Vectors:
    """Each value, and how much less it is than the greatest. [n, 2]"""
    one = np.asarray(values, np.float32)
    return np.stack([one, one - one.max()], axis=1)
