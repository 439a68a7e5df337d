"""The ranking at work, and how a workspace comes by it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from gemel_ray.errors import Mistake
from gemel_ray.knowledge.bank import Bank
from gemel_ray.knowledge.entities import Entities
from gemel_ray.ranking import context, descriptions, retrieval, triples
from gemel_ray.ranking import examples as example_files
from gemel_ray.ranking import names as name_files
from gemel_ray.ranking.connections import Connections
from gemel_ray.ranking.context import Judged
from gemel_ray.ranking.evidence import Evidence, Witness
from gemel_ray.ranking.examples import Encode, Examples
from gemel_ray.ranking.features import GRAPH, RETRIEVAL, Group, Question, Sources, of_features
from gemel_ray.ranking.names import Names
from gemel_ray.ranking.ranker import Ranker, best_two, parts, told, voters
from gemel_ray.ranking.retrieval import Retrieval
from gemel_ray.ranking.towers import Negatives
from gemel_ray.ranking.triples import Triple, Triples
from gemel_ray.ranking.words import key

if TYPE_CHECKING:
    from gemel_ray.knowledge.workspace import Workspace

Matrix = npt.NDArray[np.float32]
FILE, _ABOUT = "ranker.safetensors", "about.npy"
_IDENTITIES = "identities.npy"  # keys of the entities' ids, for the knowledge graph


class Likely(NamedTuple):
    """Rows of the entities that a mention may mean, their log-probabilities, and why, in words."""

    rows: npt.NDArray[np.int64]
    logs: Matrix
    why: str | None = None


class Ranking:
    """Candidates of mentions with their probabilities."""

    def __init__(self, witness: Witness, ranker: Ranker) -> None:
        self._witness, self._ranker = witness, ranker

    @classmethod
    def open(
        cls, folder: Path, bank: Bank, entities: Entities, *, described: bool = True, retrieved: int = 0
    ) -> Ranking:
        """From the files of one version of a workspace. ValueError: no ranker there, or another's, or nothing
        from which candidates could be `retrieved`."""
        ranker = Ranker.load(folder / FILE)
        groups = of_features(ranker.features)
        knowing = witness(folder, bank, entities, ranker.weights["bend"], groups)
        if retrieved and knowing.sources.retrieval is None:
            raise Mistake(
                f"retrieve.retrieved={retrieved} asks the workspace's trained retrieval, and this one has "
                "none: build it with bank.retrieval"
            )
        knowing = Witness(knowing.sources, groups, retrieved)
        return cls(knowing if described else knowing.undescribed(), ranker)

    def __call__(self, asked: Question, most: int, *, why: bool = False) -> Likely:
        """The `most` likeliest, best first."""
        evidence = self._witness.evidence(asked)
        if not len(evidence.rows):
            return Likely(evidence.rows, np.empty(0, np.float32))
        logs = self._ranker.log_probabilities(evidence.features)
        order = np.argsort(-logs, kind="stable")
        best = order[:most]
        said = self._why(asked, evidence, logs, order) if why else None
        return Likely(evidence.rows[best], logs[best], said)

    def _why(self, asked: Question, evidence: Evidence, logs: Matrix, order: npt.NDArray[np.int64]) -> str:
        sources, rows = self._witness.sources, evidence.rows[order[:2]].tolist()
        weights = parts(self._ranker, self._witness.groups, best_two(evidence, order))
        examples = voters(asked, sources.examples.entity, rows[0])
        names = [name for _, name in sources.entities.of(rows)]
        said = sources.examples.bank.ids(examples)
        return told(names, math.exp(logs[order[0]]), weights, said)


def witness(
    folder: Path,
    bank: Bank,
    entities: Entities,
    bend: Matrix | None = None,
    groups: Sequence[Group] | None = None,
) -> Witness:
    """What a version's files tell, by these groups of features, or by all that it has. Those of the graph
    are not opened where they are not wanted."""
    about, names = descriptions.opened(folder / _ABOUT), Names(folder)
    graph = Triples.there(folder) and (groups is None or any(group.name == GRAPH for group in groups))
    connections = Connections(Triples(folder), names, _identities(folder)) if graph else None
    wanted = groups is None or any(group.name == RETRIEVAL for group in groups)
    fitting = Retrieval(folder) if wanted and Retrieval.there(folder) else None
    sources = Sources(names, Examples(folder, bank), entities, about, bend, connections, fitting)
    return Witness(sources, groups)


def _identities(folder: Path) -> npt.NDArray[np.uint64]:
    return np.asarray(np.load(folder / _IDENTITIES, mmap_mode="r"))


def write(
    folder: Path,
    bank: Bank,
    entities: Entities,
    encode: Encode,
    former: Workspace | None = None,
    *,
    described: int,
    facts: Sequence[Triple] = (),
) -> None:
    """Index a version's entities and examples into `folder`. Texts that `former`, another version, has
    encoded are taken over, and so are its ranker and its triples, with new `facts` behind them. Descriptions
    of more than `described` entities have no vectors."""
    name_files.write(entities, folder)
    known = Examples(former.ranking_folder, former.bank) if former else None
    example_files.write(bank, entities, encode, folder, known)
    width, before = bank.mention_vectors.shape[1], _described(former) if former else None
    if len(entities) <= described:
        descriptions.write(entities, encode, width, folder / _ABOUT, before)
    else:
        descriptions.write_none(entities, width, folder / _ABOUT)
    if former:
        shutil.copyfile(former.ranking_folder / FILE, folder / FILE)
        if facts:
            triples.write(facts, entities.pairs(), folder, Triples(former.ranking_folder))
        else:
            triples.taken_over(former.ranking_folder, folder)
    if Triples.there(folder):
        identities = np.fromiter(
            (key(identity) for identity, _ in entities.pairs()), np.uint64, len(entities)
        )
        np.save(folder / _IDENTITIES, identities)
    if former and Retrieval.there(former.ranking_folder):
        retrieval.taken_over(former.ranking_folder, folder, encode, *_of_entities(folder))


def teach(folder: Path, encode: Encode, negatives: Negatives, judged: Sequence[Judged]) -> list[Matrix]:
    """A retrieval taught on judged examples, written to `folder`. Returns how well the candidates of each
    example fit by one that it did not teach."""
    about, identities = _of_entities(folder)
    if not Retrieval.there(folder):
        retrieval.prepare(folder, encode, about.shape[1])
    known = retrieval.frozen(folder, about, identities)
    found, weights = context.crossed(known, judged, negatives)
    retrieval.finish(folder, known, weights)
    return found


def _of_entities(folder: Path) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint64] | None]:
    """Vectors of their descriptions, and, where there is a graph, keys of their ids."""
    identities = _identities(folder) if (folder / _IDENTITIES).exists() else None
    return descriptions.opened(folder / _ABOUT), identities


def _described(former: Workspace) -> descriptions.Described:
    return descriptions.Described(former.entities, descriptions.opened(former.ranking_folder / _ABOUT))
