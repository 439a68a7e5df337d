"""The trained retrieval in use: the cosine of a mention in its text and an entity with its facts, by the
towers that context.py trains. The entities' vectors are beside the ranker, memory-mapped."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from gemel_ray import storage
from gemel_ray.progress import Meter, Progress
from gemel_ray.ranking import towers
from gemel_ray.ranking.examples import Encode
from gemel_ray.ranking.towers import Frozen
from gemel_ray.ranking.triples import Triples

Vectors = npt.NDArray[np.float32]
Half = npt.NDArray[np.float16]
_WEIGHTS, _ENTITIES = "retrieval.safetensors", "retrieval.entities.npy"
_ENDS, _RELATIONS = "retrieval.ends.npy", "retrieval.relations.npy"
_AT_ONCE = 8_192


class Retrieval:
    """The files that `finish` wrote, opened."""

    def __init__(self, folder: Path) -> None:
        self._entities: Half = np.asarray(np.load(folder / _ENTITIES, mmap_mode="r"))
        self._weights = load_file(folder / _WEIGHTS)

    @classmethod
    def exists(cls, folder: Path) -> bool:
        return (folder / _ENTITIES).exists()

    def fits(self, rows: npt.NDArray[np.int64], mention: Vectors, text: Vectors) -> Vectors:
        """The cosine of each of these entities with a mention in its text."""
        cosines: Vectors = self._entities[rows].astype(np.float32) @ towers.mention_vector(
            self._weights, mention, text
        )
        return cosines

    def nearest(self, count: int, mention: Vectors, text: Vectors) -> list[int]:
        """The entities with the greatest cosines, the best first. Reads every entity's vector."""
        asked = towers.mention_vector(self._weights, mention, text)
        parts = range(0, len(self._entities), _AT_ONCE)
        cosines = np.concatenate([self._entities[i : i + _AT_ONCE].astype(np.float32) @ asked for i in parts])
        best = np.argpartition(-cosines, min(count, len(cosines) - 1))[:count]
        nearest: list[int] = best[np.argsort(-cosines[best], kind="stable")].tolist()
        return nearest


def prepare(ranking: Path, encode: Encode, width: int, folder: Path) -> None:
    """Encode the labels of a ranking's knowledge graph, if it has one, into `folder`: the frozen vectors of
    facts, which all retrievals of this graph share."""
    graph = Triples(ranking) if Triples.exists(ranking) else None
    _encoded(graph.labels() if graph else [""], encode, width, folder / _ENDS)
    _encoded(graph.relations() if graph else [""], encode, width, folder / _RELATIONS)


def prepared(folder: Path) -> bool:
    """Whether the labels' vectors are in this folder."""
    return (folder / _RELATIONS).exists()


def labels_in(folder: Path) -> list[Path]:
    """The files that `prepare` wrote."""
    return [folder / _ENDS, folder / _RELATIONS]


def _encoded(labels: Sequence[str], encode: Encode, width: int, file: Path) -> None:
    """Write the labels' vectors; labels without letters, as numbers and dates, have zeros."""
    made = np.lib.format.open_memmap(file, "w+", np.float16, (len(labels), width))  # type: ignore[no-untyped-call]
    _encode(made, labels, range(len(labels)), encode)
    made.flush()


def _encode(vectors: Half, labels: Sequence[str], which: Sequence[int], encode: Encode) -> None:
    written = [i for i in which if any(map(str.isalpha, labels[i]))]
    with Meter("labels", len(written), "encoding them") as meter:
        for start in range(0, len(written), _AT_ONCE):
            some = written[start : start + _AT_ONCE]
            vectors[some] = encode([labels[i] for i in some])
            meter.add(Progress(len(some), {}))


def _renew(file: Path, labels: Sequence[str], before: Sequence[str], encode: Encode) -> None:
    """Encode the labels that are new or changed."""
    known = np.load(file)
    changed = [i for i, label in enumerate(labels) if i >= len(before) or label != before[i]]
    if changed:
        made = np.zeros((len(labels), known.shape[1]), np.float16)
        made[: len(known)] = known
        _encode(made, labels, changed, encode)
        np.save(file, made)


def frozen(folder: Path, about: Half, identities: npt.NDArray[np.uint64] | None) -> Frozen:
    """The frozen vectors, on which towers are trained, and of which entities' vectors are made."""
    ends, relations = (np.asarray(np.load(folder / name, mmap_mode="r")) for name in (_ENDS, _RELATIONS))
    if identities is None or not Triples.exists(folder):
        none = np.full((len(about), 1), -1, np.int32)
        return Frozen(about, ends, relations, none, np.zeros(1, np.int32), np.zeros(1, np.int32))
    graph = Triples(folder)
    facts = towers.rarest(graph, identities, np.asarray(ends.any(axis=1)))
    return Frozen(about, ends, relations, facts, graph.node, graph.relation)


def finish(folder: Path, known: Frozen, weights: dict[str, Vectors]) -> None:
    """Write the weights and all entities' vectors."""
    with storage.replacing(folder / _WEIGHTS) as aside:
        save_file(weights, aside)
    vectors = towers.loaded(weights).all_entities(known)
    # Another workspace may share the former file.
    with storage.replacing(folder / _ENTITIES) as aside, aside.open("wb") as file:
        np.save(file, vectors)


def carry_over(
    former: Path, folder: Path, encode: Encode, about: Half, identities: npt.NDArray[np.uint64] | None
) -> None:
    """Write the same towers to another version's folder, and the vectors of its entities. Only labels that
    are not in the former graph are encoded."""
    for name in (_ENDS, _RELATIONS):
        shutil.copyfile(former / name, folder / name)
    if Triples.exists(folder):
        graph, before = Triples(folder), Triples(former)
        _renew(folder / _ENDS, graph.labels(), before.labels(), encode)
        _renew(folder / _RELATIONS, graph.relations(), before.relations(), encode)
    finish(folder, frozen(folder, about, identities), load_file(former / _WEIGHTS))
