"""Fits the default ranker again, on workspaces built from solved public examples.

    python -m gemel_ray.ranking.default_maker WORKSPACE ... --popular WORKSPACE ...

Each workspace is built as usual, with its examples, descriptions and triples. The ranker sees every example
in one of many situations, as users have them: without other examples or with few, without descriptions,
triples or popularity, with a small knowledge base, with an encoder that it does not know. So it can judge
by what there is. docs/ranking.md has the data and the figures.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gemel_ray.config import Config, load
from gemel_ray.errors import Mistake
from gemel_ray.knowledge.entities import Entities
from gemel_ray.knowledge.hashing import hashed
from gemel_ray.knowledge.versions import read_facts
from gemel_ray.knowledge.workspace import Workspace
from gemel_ray.ranking.connections import Connections
from gemel_ray.ranking.context import TrainingExample
from gemel_ray.ranking.default import FILE, SAMPLE, default_groups, rarity_columns, rarity_unit, unencoded
from gemel_ray.ranking.evidence import Collector, Evidence, undescribed
from gemel_ray.ranking.examples import Examples
from gemel_ray.ranking.features import Case, Group, Question, SharedWords, Sources
from gemel_ray.ranking.fitting import Prepared, fitted, question_of
from gemel_ray.ranking.making import neighbours
from gemel_ray.ranking.postings import Mask
from gemel_ray.ranking.ranker import Ranker
from gemel_ray.ranking.ranking import open_collector
from gemel_ray.ranking.triples import Triples

_NEAREST, _LOOKED_AT = 16, 128  # examples that vote, and of which those that are not hidden are taken
_LEAST, _MOST, _CHOICES = 10, 1_500, 24  # examples where there are few, and choices of them
_SMALL = (1.0, 1.0, 1 / 4, 1 / 16, 1 / 64)  # shares of the knowledge base


@dataclass(frozen=True)
class Situation:
    """What there is besides the names: the examples that are not `hidden`, and evidence. `sparse`: half of
    the entities have no description and no facts. `share`: of the entities that there are."""

    hidden: Mask
    described: bool = True
    triples: bool = True
    popular: bool = True
    encoded: bool = True  # vectors of texts
    sparse: bool = False
    share: float = 1.0


class _Smaller(Collector):
    """A collector whose candidates are entities that are `there`; those that are `bare` have no
    description."""

    def __init__(self, sources: Sources, groups: Sequence[Group], there: Mask, bare: Mask) -> None:
        super().__init__(sources, groups)
        self.there, self.bare = there, bare

    def _case(self, asked: Question) -> Case:
        case = super()._case(asked)
        known = [
            undescribed(entity) if bare else entity
            for entity, bare in zip(case.known, self.bare[case.rows].tolist(), strict=True)
        ]
        return replace(case, known=known)

    def _candidates(
        self, mention: str, prior: Counter[int], near: list[int], words: SharedWords
    ) -> list[int]:
        return [row for row in super()._candidates(mention, prior, near, words) if self.there[row]]


class Situations:
    """Collects evidence on a workspace's entities in a situation."""

    def __init__(self, workspace: Workspace, dice: np.random.Generator) -> None:
        folder, self.dice = workspace.ranking_folder, dice
        if not Triples.exists(folder):
            raise Mistake(f"{workspace.folder} was built without --triples")
        opened = open_collector(folder, workspace.bank, workspace.entities)
        unpopular = _counted(workspace.entities, pa.nulls(len(workspace.entities), pa.float64()))
        self.sources = replace(opened.sources, entities=unpopular, retrieval=None)
        self.popular, self.groups = _with_popularity(workspace), default_groups()
        self.bare = dice.random(len(workspace.entities)) < 0.5
        about = np.where(self.bare[:, None], np.float16(0), self.sources.about)
        identities = np.where(self.bare, np.uint64(0), _identities(workspace.entities))
        connections = Connections(Triples(folder), self.sources.names, identities)
        self.sparse = replace(self.sources, about=about, connections=connections)

    def evidence(self, asked: Question, now: Situation, right: int) -> Evidence:
        """The candidates in this situation; the entity `right` is always in the knowledge base."""
        sources = self.sparse if now.sparse else self.sources
        if not now.described:
            sources = Collector(sources).without_descriptions().sources
        if not now.triples:
            sources = replace(sources, connections=None)
        if now.popular:
            sources = replace(sources, entities=self.popular)
        there = self.dice.random(len(self.bare)) < now.share
        there[right] = True
        asked = replace(asked, left_out=now.hidden, **_voting(asked, now.hidden))
        collector = _Smaller(sources, self.groups, there, self.bare & now.sparse)
        evidence = collector.evidence(asked if now.encoded else unencoded(asked))
        evidence.features[:, rarity_columns()] /= rarity_unit(len(self.bare))
        return evidence


def _voting(asked: Question, hidden: Mask) -> dict[str, Any]:
    """The nearest examples that are not hidden, and names."""
    usable = np.ones(len(asked.nearest), np.bool_)
    solved = asked.nearest < len(hidden)
    usable[solved] = ~hidden[asked.nearest[solved]]
    last = np.flatnonzero(usable)[-_NEAREST:]
    return {"nearest": asked.nearest[last], "votes": asked.votes[last]}


def _with_popularity(workspace: Workspace) -> Entities:
    """The entities with their popularity; where none is given, with the number of facts whose object each
    is."""
    table = workspace.entities.table
    if table["popularity"].null_count < len(table):
        return workspace.entities
    triples = Triples(workspace.ranking_folder)
    degrees = dict(zip(triples.identity.tolist(), triples.degree.tolist(), strict=True))
    keys = _identities(workspace.entities).tolist()
    counts = pa.array([float(degrees.get(key, 0)) for key in keys], pa.float64())
    return _counted(workspace.entities, counts)


def _counted(entities: Entities, counts: pa.Array) -> Entities:
    """The entities with this popularity."""
    table = entities.table
    return Entities(table.set_column(table.schema.get_field_index("popularity"), "popularity", [counts]))


def _identities(entities: Entities) -> npt.NDArray[np.uint64]:
    return np.fromiter((hashed(identity) for identity, _ in entities.pairs()), np.uint64, len(entities))


def thinned(examples: Examples, kept: int, dice: np.random.Generator) -> Mask:
    """A mask that hides all examples but some `kept`, whole texts of them."""
    texts = len(examples.text_vectors)
    shown = dice.permutation(texts)[: kept * texts // examples.bank.examples]
    return ~np.isin(examples.text, shown)


def _situations(examples: Examples, popular: bool, dice: np.random.Generator) -> Iterator[Situation]:
    """Situations at random, endlessly; if `popular`, some with popularity."""
    none = np.ones(examples.bank.examples, np.bool_)
    sizes = np.exp(dice.uniform(math.log(_LEAST), math.log(_MOST), _CHOICES))
    few = [thinned(examples, int(size), dice) for size in sizes]
    while True:
        hidden = none if dice.random() < 0.4 else few[dice.integers(_CHOICES)]
        described, triples, counted, encoded, sparse = (dice.random(5) < (0.75, 0.5, 0.4, 0.85, 0.2)).tolist()
        share = float(dice.choice(_SMALL))
        yield Situation(hidden, described, triples, counted and popular, encoded, sparse, share)


def judged(
    workspace: Workspace, config: Config, most: int, popular: bool, seed: int = 0
) -> Iterator[TrainingExample]:
    """At most `most` of a workspace's examples, each with its candidates in a situation; `popular`: in some
    with popularity. If hardly any but the right entity lacked a description, this would reveal it; so it is
    seen where none has one."""
    dice = np.random.default_rng(seed)
    situations = Situations(workspace, dice)
    examples, about = situations.sources.examples, situations.sources.about
    known = np.flatnonzero(examples.entity[: examples.bank.examples] >= 0)
    sample = dice.permutation(known)[:most]
    wide = replace(config, retrieve=replace(config.retrieve, demonstrations=_LOOKED_AT, shared_sets=0))
    drawn = islice(_situations(examples, popular, dice), len(sample))
    found = neighbours(workspace, wide, sample)
    for row, (nearest, votes), now in zip(sample.tolist(), found, drawn, strict=True):
        asked, right = question_of(examples, row, nearest, votes), int(examples.entity[row])
        seen = now if about[right].any() else replace(now, described=False, triples=False, popular=False)
        evidence = situations.evidence(asked, seen, right)
        at = np.flatnonzero(evidence.rows == right)
        if len(evidence.rows):
            assert asked.mention_vector is not None
            index = int(at[0]) if len(at) else -1
            yield TrainingExample(evidence, index, asked.text_vector, asked.mention_vector)


def prepared(examples: Sequence[TrainingExample], seed: int = 0) -> Prepared:
    """The examples in random order. There is no bend: one that fits other knowledge bases fits less than
    none."""
    order = np.random.default_rng(seed).permutation(len(examples)).tolist()
    none = np.zeros((0, 0), np.float32)
    return Prepared([examples[i] for i in order], default_groups(), none, none.astype(np.float16))


def main(folders: Sequence[Path], popular: Sequence[Path], output: Path, most: int) -> None:
    """Fit on these workspaces' examples, and write the ranker. `popular`: the workspaces whose examples are
    also seen with popularity."""
    examples, vectors, fitted_on = list[TrainingExample](), [], {}
    for folder in folders:
        config = load(None, read_facts(folder)["settings"], ["retrieve.ranking=0"])
        workspace = Workspace.open(folder, config)
        some = list(judged(workspace, config, most, folder in popular))
        examples, fitted_on[folder.name] = [*examples, *some], len(some)
        vectors.append(workspace.mention_encoder(config.encode.device, config.encode.dtype)([SAMPLE])[0])
    if not np.allclose(vectors, vectors[0], atol=0.01):
        raise Mistake("the workspaces have different encoders of mentions: build them with one")
    ranker = fitted(prepared(examples))
    if ranker is None:
        raise Mistake("hardly any example has its entity among its candidates")
    about = {"fitted_on": fitted_on, "right": ranker.about["right"], "sample": vectors[0].tolist()}
    weights: dict[str, Any] = {name: array.astype(np.float16) for name, array in ranker.weights.items()}
    Ranker(weights, about, ranker.features).save(output)
    print(f"{output}: {ranker.origin}, right in {about['right']:.1%} of the others")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fit the default ranker.")
    parser.add_argument("workspaces", nargs="+", type=Path)
    parser.add_argument(
        "--popular",
        nargs="*",
        type=Path,
        default=[],
        help="workspaces whose examples name the popular more often",
    )
    parser.add_argument("--output", type=Path, default=FILE)
    parser.add_argument("--examples", type=int, default=12_000, help="of each workspace, at most")
    options = parser.parse_args()
    main(options.workspaces, options.popular, options.output, options.examples)
