"""The knowledge graph: the facts of entities. Memory-mapped, and stored by ids, not by rows, so it does not
change when entities are added and removed.

A *node* is the tail of a triple: an entity, by its id, or a text alone. A *fact* is a relation and a node;
many entities may share one."""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gemel_ray.knowledge.hashing import key
from gemel_ray.ranking.postings import Postings, PostingsWriter, Rows
from gemel_ray.ranking.sorting import PAIR
from gemel_ray.ranking.words import folded, stems

_PREFIX = "graph."  # of the files in the ranking's folder
Keys = npt.NDArray[np.uint64]
_LABELS = pa.schema([pa.field("label", pa.string())])
_ARRAYS = ("relation", "node", "identity", "form", "degree", "starts", "words")
_BATCH = 65_536


@dataclass(frozen=True, slots=True)
class Triple:
    """A triple. `tail`: an id, or None if it is a text alone; `relation` and `label` for people."""

    head: str
    relation: str
    tail: str | None
    label: str | None


class Triples:
    """The files that `write` made, opened. Each fact has its `relation` and `node`; each node the `identity`
    that is its key, the `form` of its label, the number of entities that have it (`degree`), and its label's
    stems."""

    @classmethod
    def exists(cls, folder: Path) -> bool:
        """Whether `write` made them in this folder."""
        return (folder / f"{_PREFIX}node.npy").exists()

    def __init__(self, folder: Path) -> None:
        self._facts = Postings.open(folder, f"{_PREFIX}heads")
        mapped = (np.asarray(np.load(folder / f"{_PREFIX}{name}.npy", mmap_mode="r")) for name in _ARRAYS)
        self.relation, self.node, self.identity, self.form, self.degree, self._starts, self._words = mapped
        self._labels, self._relations = (
            _opened(folder / f"{_PREFIX}{name}.arrow") for name in ("nodes", "relations")
        )

    def facts(self, identity: int) -> Rows:
        """Facts of the entity whose id has this key."""
        return self._facts.of(identity)

    def ends(self, identities: Keys) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """The nodes at the ends of these entities' facts, and for each the place of its entity."""
        facts, whose = self._facts.each(identities)
        return self.node[facts], whose

    def words(self, nodes: npt.NDArray[np.int32]) -> tuple[Keys, npt.NDArray[np.int64]]:
        """The keys of the stems of these nodes' labels, node after node, and the number of each."""
        starts = self._starts[nodes]
        lengths = self._starts[nodes + 1] - starts
        before = np.cumsum(lengths) - lengths
        return self._words[np.repeat(starts - before, lengths) + np.arange(lengths.sum())], lengths

    def pairs(self) -> tuple[Keys, npt.NDArray[np.int64]]:
        """The keys of the entities' ids, and for each a fact: its relation and, in the lower half, its
        node."""
        heads, facts = self._facts.pairs()
        return heads, self.relation[facts].astype(np.int64) << 32 | self.node[facts]

    def label(self, node: int) -> str:
        """The label of a node."""
        return str(self._labels[node].as_py())

    def labels(self) -> list[str]:
        """The labels of all nodes."""
        return [str(label) for label in self._labels.to_pylist()]

    def relations(self) -> list[str]:
        return [str(relation) for relation in self._relations.to_pylist()]

    def __len__(self) -> int:
        return len(self.node)


def carry_over(former: Path, folder: Path) -> None:
    """Copy the triples to another version's folder."""
    for file in former.glob(f"{_PREFIX}*"):
        shutil.copyfile(file, folder / file.name)


def _opened(file: Path) -> pa.ChunkedArray:
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()["label"]


def write(
    triples: Iterable[Triple],
    entities: Iterable[tuple[str, str]],
    folder: Path,
    former: Triples | None = None,
) -> int:
    """Write the arrays of these triples, given in any order, after those of `former`, whose nodes and
    relations keep their numbers. Returns the number of different triples. A tail without a label gets the
    name of the entity with its id, by (id, name) of `entities`, else its id. Memory: 16 bytes per triple, and
    the nodes' labels."""
    folder.mkdir(parents=True, exist_ok=True)
    nodes, relations = _Numbered(), _Numbered()
    heads, packed = array("Q"), array("q")
    if former is not None:
        nodes.take(former.identity.tolist(), former.labels())
        named = former.relations()
        relations.take(map(key, named), named)
        for mine, theirs in zip((heads, packed), former.pairs(), strict=True):
            mine.frombytes(theirs.tobytes())
    for triple in triples:
        node = nodes.of(triple.tail or f"\0{triple.label}", triple.label)
        heads.append(key(triple.head))
        packed.append(relations.of(triple.relation) << 32 | node)
    for identity, name in entities:
        nodes.call(identity, name)
    facts, fact_of = np.unique(np.frombuffer(packed, np.int64), return_inverse=True)
    of_heads, identities = PostingsWriter(folder, f"{_PREFIX}heads"), np.frombuffer(heads, np.uint64)
    of_heads.add(identities, fact_of)
    node_of = (facts & 0xFFFFFFFF).astype(np.int32)
    pairs = np.empty(len(heads), PAIR)
    pairs["key"], pairs["row"] = identities, node_of[fact_of]
    owners = np.unique(pairs)
    np.save(folder / f"{_PREFIX}relation.npy", (facts >> 32).astype(np.int32))
    np.save(folder / f"{_PREFIX}node.npy", node_of)
    degree = np.bincount(owners["row"], minlength=len(nodes)).astype(np.int32)
    np.save(folder / f"{_PREFIX}degree.npy", degree)
    _nodes(nodes, folder)
    _save(relations.labels, folder / f"{_PREFIX}relations.arrow")
    return of_heads.finish()


class _Numbered:
    """Things numbered in order of appearance, by the keys of their names, each with its first label; without
    a label, the name is the label."""

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}
        self.labels: list[str] = []
        self._unlabelled: set[int] = set()

    def take(self, keys: Iterable[int], labels: list[str]) -> None:
        """Begin with these. A label that equals the name can be replaced."""
        self.numbers = {key: number for number, key in enumerate(keys)}
        self.labels = labels
        self._unlabelled = {n for k, n in self.numbers.items() if key(labels[n]) == k}

    def of(self, name: str, label: str | None = None) -> int:
        number = self.numbers.setdefault(key(name), len(self.labels))
        if number == len(self.labels):
            self.labels.append(label or name)
            if not label:
                self._unlabelled.add(number)
        elif label:
            self.call(name, label)
        return number

    def call(self, name: str, label: str) -> None:
        """Give the label to a thing that is here and has none."""
        number = self.numbers.get(key(name), -1)
        if number in self._unlabelled:
            self.labels[number] = label
            self._unlabelled.remove(number)

    def __len__(self) -> int:
        return len(self.labels)


def _nodes(nodes: _Numbered, folder: Path) -> None:
    forms = [folded(label) for label in nodes.labels]
    words = [[key(word) for word in sorted(stems(form))] for form in forms]
    np.save(folder / f"{_PREFIX}identity.npy", np.fromiter(nodes.numbers, np.uint64, len(nodes)))
    written = np.fromiter((key(form) if form else 0 for form in forms), np.uint64)
    np.save(folder / f"{_PREFIX}form.npy", written)
    np.save(folder / f"{_PREFIX}starts.npy", np.cumsum([0, *map(len, words)], dtype=np.int64))
    np.save(folder / f"{_PREFIX}words.npy", np.fromiter(chain.from_iterable(words), np.uint64))
    _save(nodes.labels, folder / f"{_PREFIX}nodes.arrow")


def _save(labels: list[str], file: Path) -> None:
    with pa.ipc.new_file(str(file), _LABELS) as out:
        for some in _batches(labels):
            out.write_table(pa.table({"label": some}, _LABELS))


def _batches(labels: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(labels), _BATCH):
        yield labels[start : start + _BATCH]
