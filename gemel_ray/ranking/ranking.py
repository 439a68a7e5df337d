"""The ranking in use, and the writing of its files."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gemel_ray.errors import Mistake
from gemel_ray.knowledge.bank import Bank
from gemel_ray.knowledge.columns import values
from gemel_ray.knowledge.entities import Entities, EntityChanges
from gemel_ray.knowledge.hashing import hashed
from gemel_ray.ranking import context, descriptions, retrieval, triples
from gemel_ray.ranking import examples as example_files
from gemel_ray.ranking import names as name_files
from gemel_ray.ranking.connections import Connections
from gemel_ray.ranking.context import TrainingExample
from gemel_ray.ranking.default import unencoded
from gemel_ray.ranking.evidence import Collector, Evidence
from gemel_ray.ranking.examples import Encode, Examples
from gemel_ray.ranking.features import GRAPH, RETRIEVAL, Group, Question, Sources, groups_of
from gemel_ray.ranking.names import FormerNames, Names
from gemel_ray.ranking.ranker import Ranker, best_two, contributions, explanation, nearest_examples
from gemel_ray.ranking.retrieval import Retrieval
from gemel_ray.ranking.towers import Negatives
from gemel_ray.ranking.triples import Triple, Triples

Matrix = npt.NDArray[np.float32]
FILE, _ABOUT = "ranker.safetensors", "about.npy"
_IDENTITIES = "identities.npy"  # keys of the entities' ids, for the knowledge graph


class Likely(NamedTuple):
    """Rows of the entities that a mention may mean, their log-probabilities, and an explanation."""

    rows: npt.NDArray[np.int64]
    logs: Matrix
    why: str | None = None


@dataclass(frozen=True)
class Former:
    """The ranking of the former version, with that version's bank and entities, and how the new version's
    entities follow from these."""

    folder: Path
    bank: Bank
    entities: Entities
    changes: EntityChanges

    def descriptions(self) -> npt.NDArray[np.float16]:
        return descriptions.opened(self.folder / _ABOUT, len(self.entities))

    @property
    def described(self) -> bool:
        """Whether descriptions have vectors."""
        return descriptions.encoded(self.folder / _ABOUT)


class Ranking:
    """Candidates of mentions with their probabilities."""

    def __init__(self, collector: Collector, ranker: Ranker) -> None:
        self._collector, self._ranker = collector, ranker

    @classmethod
    def open(
        cls, folder: Path, bank: Bank, entities: Entities, *, described: bool = True, retrieved: int = 0
    ) -> Ranking:
        """Open the files of one version of a workspace. Raises ValueError if there is no ranker, or one of
        another form, or no retrieval from which candidates could be `retrieved`."""
        ranker = Ranker.load(folder / FILE)
        groups = groups_of(ranker.features)
        collector = open_collector(folder, bank, entities, ranker.weights["bend"], groups)
        if retrieved and collector.sources.retrieval is None:
            raise Mistake(
                f"retrieve.retrieved={retrieved} needs a trained retrieval, and this workspace has none: "
                "build it with bank.retrieval"
            )
        collector = Collector(collector.sources, groups, retrieved)
        return cls(collector if described else collector.without_descriptions(), ranker)

    def __call__(self, asked: Question, most: int, *, why: bool = False) -> Likely:
        """The `most` likeliest, best first."""
        evidence = self._collector.evidence(asked if self._ranker.encoded else unencoded(asked))
        if not len(evidence.rows):
            return Likely(evidence.rows, np.empty(0, np.float32))
        logs = self._ranker.log_probabilities(evidence.features)
        order = np.argsort(-logs, kind="stable")
        best = order[:most]
        reason = self._why(asked, evidence, logs, order) if why else None
        return Likely(evidence.rows[best], logs[best], reason)

    def _why(self, asked: Question, evidence: Evidence, logs: Matrix, order: npt.NDArray[np.int64]) -> str:
        sources, rows = self._collector.sources, evidence.rows[order[:2]].tolist()
        weights = contributions(self._ranker, self._collector.groups, best_two(evidence, order))
        examples = nearest_examples(asked, sources.examples.entity, rows[0])
        names = [name for _, name in sources.entities.of(rows)]
        ids = sources.examples.bank.ids(examples)
        return explanation(names, math.exp(logs[order[0]]), weights, ids)


def origin(folder: Path) -> str | None:
    """Where the ranker of a version comes from, in words; None without one. Raises Mistake as `open`."""
    return Ranker.load(folder / FILE).origin if (folder / FILE).exists() else None


def open_collector(
    folder: Path,
    bank: Bank,
    entities: Entities,
    bend: Matrix | None = None,
    groups: Sequence[Group] | None = None,
) -> Collector:
    """A collector on a version's files, for these groups of features, or for all that are available. The
    files of the graph and of the retrieval are opened only if a group needs them."""
    about, names = descriptions.opened(folder / _ABOUT, len(entities)), Names(folder)
    graph = Triples.exists(folder) and (groups is None or any(group.name == GRAPH for group in groups))
    connections = Connections(Triples(folder), names, _identities(folder)) if graph else None
    wanted = groups is None or any(group.name == RETRIEVAL for group in groups)
    retriever = Retrieval(folder) if wanted and Retrieval.exists(folder) else None
    sources = Sources(names, Examples(folder, bank), entities, about, bend, connections, retriever)
    return Collector(sources, groups)


def _identities(folder: Path) -> npt.NDArray[np.uint64]:
    return np.asarray(np.load(folder / _IDENTITIES, mmap_mode="r"))


def write(
    folder: Path,
    bank: Bank,
    entities: Entities,
    encode: Encode,
    former: Former | None = None,
    *,
    described: int,
    facts: Sequence[Triple] = (),
) -> None:
    """Index a version's entities and examples into `folder`. What `former` has of entities and texts that
    stay is copied, and so are its ranker and its triples, to which `facts` are added. If there are more than
    `described` entities, descriptions have no vectors."""
    name_files.write(entities, folder, FormerNames(former.folder, former.changes) if former else None)
    known = Examples(former.folder, former.bank) if former else None
    example_files.write(bank, entities, encode, folder, known)
    width = bank.mention_vectors.shape[1] if len(bank) else encode([""]).shape[1]
    if len(entities) <= described:
        before = (former.descriptions(), former.changes) if former else None
        descriptions.write(entities, encode, width, folder / _ABOUT, before)
    else:
        descriptions.write_none(width, folder / _ABOUT)
    if former:
        shutil.copyfile(former.folder / FILE, folder / FILE)
        if facts:
            triples.write(facts, entities.pairs(), folder, Triples(former.folder))
        else:
            triples.carry_over(former.folder, folder)
    if Triples.exists(folder):
        _identify(entities, folder, former)
    if former and Retrieval.exists(former.folder):
        retrieval.carry_over(former.folder, folder, encode, *_of_entities(folder, len(entities)))


def _identify(entities: Entities, folder: Path, former: Former | None) -> None:
    """Write the keys of the entities' ids."""
    before = _identities(former.folder) if former else np.empty(0, np.uint64)
    kept = before[former.changes.kept(0, len(before))] if former else before
    ids = entities.table["id"].slice(len(kept))
    new = np.fromiter(map(hashed, values(ids)), np.uint64, len(ids))
    np.save(folder / _IDENTITIES, np.concatenate([kept, new]))


def train_retrieval(
    folder: Path, entities: int, negatives: Negatives, judged: Sequence[TrainingExample]
) -> list[Matrix]:
    """Train a retrieval on the examples and the labels' vectors in `folder`, and write it there. Returns the
    cosines of each example's candidates, by a retrieval that was not trained on this example."""
    about, identities = _of_entities(folder, entities)
    known = retrieval.frozen(folder, about, identities)
    found, weights = context.cross_fitted(known, judged, negatives)
    retrieval.finish(folder, known, weights)
    return found


def _of_entities(folder: Path, count: int) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint64] | None]:
    """The vectors of the entities' descriptions, and, if there is a graph, the keys of their ids."""
    identities = _identities(folder) if (folder / _IDENTITIES).exists() else None
    return descriptions.opened(folder / _ABOUT, count), identities
