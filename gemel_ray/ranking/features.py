"""The features of a mention's candidates: groups of features, one row per candidate.

A group is a name for people, its features' names, and a function of the sources and the case. After a change
of `GROUPS` the default ranker is fitted again (default_maker.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gemel_ray.errors import Mistake
from gemel_ray.knowledge.entities import Entities
from gemel_ray.ranking.connections import CONNECTION_FEATURES, Connections
from gemel_ray.ranking.examples import Examples
from gemel_ray.ranking.names import NameRow, Names
from gemel_ray.ranking.postings import Mask, WeightedRows
from gemel_ray.ranking.retrieval import Retrieval
from gemel_ray.ranking.words import against_names, compared, stems, trigrams, years

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Question:
    """One mention. `text_vector` of unit length; `picture`: CLIP's feature of unit length, or None. `nearest`
    and `votes`: rows of the bank, and how much each counts. `left_out`: a mask of examples that are hidden in
    addition to those of the question's document (fitting)."""

    mention: str
    text: str
    text_vector: Vectors
    picture: Vectors | None
    nearest: npt.NDArray[np.int64]
    votes: Vectors
    left_out: Mask | None = None
    mention_vector: Vectors | None = None  # for a trained retrieval


@dataclass(frozen=True)
class Sources:
    """The files of one version of the knowledge. `about`: vectors of the entities' descriptions,
    float16 [entities, width]; zeros: not described. `bend`: see context.py. `connections`: of the knowledge
    graph, where there is one, and `retrieval`, if one was trained. `described` False: descriptions are not
    read."""

    names: Names
    examples: Examples
    entities: Entities
    about: npt.NDArray[np.float16]
    bend: Vectors | None = None
    connections: Connections | None = None
    retrieval: Retrieval | None = None
    described: bool = True


@dataclass(frozen=True)
class SharedWords:
    """Entities with words in common, by the weight of the words: their names with the mention and with the
    rest of the text, their descriptions with the text, the texts of their examples with it."""

    mention: WeightedRows
    around: WeightedRows
    described: WeightedRows
    examples: WeightedRows


@dataclass(frozen=True)
class Case:
    """A question with its candidates: `rows` of the entities, int64 [n], and what the names' index says of
    each. By row: how often examples mean it by this mention (`prior`), the neighbours' share of it (`votes`),
    and whose `words` it has. `hidden`: a mask of examples that are not used. `mention` and `text` are
    folded."""

    asked: Question
    hidden: Mask
    mention: str
    text: str
    rows: npt.NDArray[np.int64]
    known: list[NameRow]
    prior: Counter[int]
    votes: dict[int, float]
    words: SharedWords


GRAPH, POPULARITY, RETRIEVAL = "knowledge graph", "popularity", "trained retrieval"
SHORT = 6  # letters: a longer mention is not looked for as initials
_READ = 200  # examples of one entity that are compared
_UNPOPULAR = 1e-3  # a share of the greatest popularity below which differences mean little


class Group(NamedTuple):
    """`of` gives float32 [candidates, features]."""

    name: str
    features: tuple[str, ...]
    of: Callable[[Sources, Case], Vectors]


def _mention(sources: Sources, case: Case) -> Vectors:
    prior = case.prior
    total, targets = prior.total(), len(prior)
    return np.array(
        [
            [math.log1p(n), n / (total + 1), n > 0, math.log1p(total), total > 0 and n == 0, targets]
            for n in (prior[row] for row in case.rows.tolist())
        ],
        np.float32,
    )


def _names(sources: Sources, case: Case) -> Vectors:
    mention, words = case.mention, case.mention.split()
    grams, all_of = trigrams(mention), set(words)
    short = mention.replace(" ", "") if len(mention) <= SHORT else ""
    whole = sum(map(sources.names.word_weight, words)) or 1.0
    shared = (case.words.mention.of(case.rows) / whole).tolist()
    likeness = [
        [*against_names(mention, words, all_of, grams, e["name"], e["aliases"], part), short in e["initials"]]
        for e, part in zip(case.known, shared, strict=True)
    ]
    return np.array(likeness, np.float32)


def _description(sources: Sources, case: Case) -> Vectors:
    around = stems(case.text) - stems(case.mention)
    overlap = [sum(map(sources.names.stem_weight, set(e["about"]) & around)) for e in case.known]
    plain = case.asked.text_vector
    bent = plain if sources.bend is None else bend(plain, sources.bend)
    described = (fits(sources.about, case.rows, vector) for vector in (plain, bent))
    return np.concatenate([*described, _less(overlap)], axis=1)


def _name_around(sources: Sources, case: Case) -> Vectors:
    words, inside = set(case.mention.split()), set(case.text.split())
    rest = [(set(e["name"].split()) - words) for e in case.known]
    named = [
        [len(r & inside) / max(1, len(r)), f" {e['name']} " in f" {case.text} "]
        for r, e in zip(rest, case.known, strict=True)
    ]
    return np.concatenate([np.array(named, np.float32), _less(case.words.around.of(case.rows))], axis=1)


def _years(sources: Sources, case: Case) -> Vectors:
    in_text = years(case.asked.text)
    return np.array([compared(in_text, e["years"]) for e in case.known], np.float32)


def _examples(sources: Sources, case: Case) -> Vectors:
    known, asked, made = sources.examples, case.asked, np.zeros((len(case.rows), 5), np.float32)
    examples, whose = known.of_each(case.rows, _READ, case.hidden)
    if len(examples):
        first = np.flatnonzero(np.diff(whose, prepend=-1))
        count = np.diff(first, append=len(whose))
        similar, looks = (
            known.text_similarity(examples, asked.text_vector),
            known.picture_similarity(examples, asked.picture),
        )
        likest = np.maximum.reduceat(looks, first)
        columns = (
            np.log1p(count),
            np.maximum.reduceat(similar, first),
            np.add.reduceat(similar, first) / count,
            np.ones(len(first)),
            np.where(np.isfinite(likest), likest, 0),
        )
        made[whose[first]] = np.stack(columns, axis=1)
    words = _less(case.words.examples.of(case.rows))
    return np.concatenate([made, made[:, 4:] - made[:, 4:].max(), words], axis=1)


def _name_sense(sources: Sources, case: Case) -> Vectors:
    """The similarity of names, which every entity has, to the mention and its text."""
    asked = case.asked
    if asked.mention_vector is None:
        return np.zeros((len(case.rows), 4), np.float32)
    mention = asked.mention_vector / (np.linalg.norm(asked.mention_vector) or 1.0)
    names = [entity["name"] for entity in case.known]
    near = sources.examples.name_similarity(names, np.stack([mention, asked.text_vector]))
    parts = [of_described(column, column != 0) for column in near.T]
    return np.concatenate(parts, axis=1)


def _neighbours(sources: Sources, case: Case) -> Vectors:
    return _less([case.votes.get(row, 0.0) for row in case.rows.tolist()])


def _popularity(sources: Sources, case: Case) -> Vectors:
    column = sources.entities.table["popularity"]  # a take would copy it
    given = [column[row].as_py() for row in case.rows.tolist()]
    return np.array([[math.log1p(max(0.0, p or 0.0)), p is not None] for p in given], np.float32)


def _popularity_among(sources: Sources, case: Case) -> Vectors:
    """The popularity beside that of the candidates with most of the mention's words: whatever it counts, a
    ratio means the same."""
    column, whole = sources.entities.table["popularity"], case.words.mention.of(case.rows)
    given = np.array([column[row].as_py() for row in case.rows.tolist()], np.float32)  # None: NaN
    known, rivals = np.isfinite(given), whole >= whole.max() - 1e-6
    most = given[known & rivals].max(initial=0.0)
    if most <= 0:
        return np.zeros((len(given), 3), np.float32)
    ratio = np.log((np.maximum(given, 0) / most + _UNPOPULAR) / (1 + _UNPOPULAR))
    below = (given[:, None] > given[known & rivals]).mean(axis=1)
    return np.where(known[:, None], np.stack([ratio, below, known], axis=1), np.float32(0))


def _question(sources: Sources, case: Case) -> Vectors:
    asked = case.asked
    words, capital = len(case.mention.split()), asked.mention[:1].isupper()
    seen, among = asked.picture is not None, len(case.rows)
    lengths = [len(e["name"].split()) for e in case.known]
    return np.array(
        [
            [n, n - words, among, e["bracket"], capital, words, seen]
            for n, e in zip(lengths, case.known, strict=True)
        ],
        np.float32,
    )


def _retrieval(sources: Sources, case: Case) -> Vectors:
    assert sources.retrieval is not None
    asked = case.asked
    if asked.mention_vector is None:
        return np.zeros((len(case.rows), 2), np.float32)
    near = sources.retrieval.fits(case.rows, asked.mention_vector, asked.text_vector)
    return of_described(near, np.asarray(sources.about[case.rows].any(axis=1)))


def of_described(near: Vectors, described: npt.NDArray[np.bool_]) -> Vectors:
    """Cosines, and their differences to the greatest. An entity without a description gets the mean of the
    others."""
    return _less(np.where(described, near, near[described].mean() if described.any() else 0.0))


def _graph(sources: Sources, case: Case) -> Vectors:
    if sources.connections is None:  # the default ranker has this group, with a graph or without
        return np.zeros((len(case.rows), len(CONNECTION_FEATURES)), np.float32)
    return sources.connections(case.rows, case.mention, case.asked.text)


GROUPS = (
    Group("examples of this mention", (
        "examples", "prior", "is known", "mentions known", "others only", "targets known",
    ), _mention),
    Group("name", (
        "is the name", "is an alias", "words in the name", "words in an alias", "words shared",
        "like the name", "like an alias", "same last word", "same first word", "begins the name",
        "is its initials",
    ), _names),
    Group("description", (
        "description fits", "description fits less", "description fits bent", "description fits bent less",
        "description's words", "description's words less",
    ), _description),
    Group("name around the mention", (
        "rest of the name in the text", "name in the text", "name's words in the text",
        "name's words in the text less",
    ), _name_around),
    Group("years", ("years known", "begun by then", "within its years", "years from its middle"), _years),
    # Whatever their mention: how many, and how alike their texts and pictures are.
    Group("other examples of it", (
        "examples at all", "likest text", "mean text", "has examples", "likest picture",
        "likest picture less", "words of an example", "words of an example less",
    ), _examples),
    Group("neighbours", ("votes", "votes less"), _neighbours),
    Group(POPULARITY, ("popularity", "has popularity"), _popularity),
    Group("popularity among candidates", (
        "popularity to the greatest", "less popular ones", "popularity given",
    ), _popularity_among),
    Group("form of the name", (
        "words of the name", "words more", "candidates", "name in brackets", "capital", "words",
        "has a picture",
    ), _question),
    Group("sense of the name", (
        "name means the mention", "name means the mention less", "name fits", "name fits less",
    ), _name_sense),
    Group(GRAPH, CONNECTION_FEATURES, _graph),
    Group(RETRIEVAL, ("retrieval fits", "retrieval fits less"), _retrieval),
)  # fmt: skip
FEATURES = tuple(feature for group in GROUPS for feature in group.features)


def features(sources: Sources, case: Case, groups: Sequence[Group]) -> Vectors:
    """The features of these groups, float32 [candidates, features]."""
    return np.concatenate([group.of(sources, case) for group in groups], axis=1, dtype=np.float32)


def feature_names(groups: Sequence[Group]) -> tuple[str, ...]:
    """The features of some groups."""
    return tuple(feature for group in groups for feature in group.features)


def available(sources: Sources, without: Collection[str] = ()) -> tuple[Group, ...]:
    """The groups whose sources exist, except those with the names `without`."""
    optional = {GRAPH: sources.connections, RETRIEVAL: sources.retrieval}
    missing = {name for name, source in optional.items() if source is None}
    return tuple(group for group in GROUPS if group.name not in {*without, *missing})


def groups_of(wanted: Sequence[str]) -> tuple[Group, ...]:
    """The groups of these features. Raises ValueError if there are no such groups."""
    groups = tuple(group for group in GROUPS if group.features[0] in wanted)
    if feature_names(groups) != tuple(wanted):
        raise Mistake("other features")
    return groups


def fits(about: npt.NDArray[np.float16], rows: npt.NDArray[np.int64], text_vector: Vectors) -> Vectors:
    """The cosines of descriptions with a text, and their differences to the greatest."""
    vectors = about[rows].astype(np.float32)
    return of_described(vectors @ text_vector, np.asarray(vectors.any(axis=1)))


def bend(texts: Vectors, matrix: Vectors) -> Vectors:
    """The vectors of texts, moved towards descriptions (context.py)."""
    return texts + texts @ matrix


def _less(values: Any) -> Vectors:
    """Each value, and its difference to the greatest: [n, 2]."""
    one = np.asarray(values, np.float32)
    return np.stack([one, one - one.max()], axis=1)
