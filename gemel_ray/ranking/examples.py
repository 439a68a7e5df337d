"""The solved examples of a mention and of an entity: their entities, texts and pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gemel_ray.knowledge.bank import Bank
from gemel_ray.knowledge.entities import Entities
from gemel_ray.knowledge.hashing import hashed, key
from gemel_ray.models.encoders import unit
from gemel_ray.ranking import postings
from gemel_ray.ranking.postings import Mask, Postings, Rows, WeightedRows
from gemel_ray.ranking.words import folded, stems

Vectors = npt.NDArray[np.float32]
Half = npt.NDArray[np.float16]
Encode = Callable[[list[str]], Vectors]
NO_ENTITY = -1
_FREQUENT = 3_000  # examples that share a word: a more frequent word is skipped


class Examples:
    """The files that `write` made for a bank, opened."""

    def __init__(self, folder: Path, bank: Bank) -> None:
        self.bank = bank
        self.entity = np.asarray(np.load(folder / "entity.npy", mmap_mode="r"))  # of each row of the bank
        self._mentions = Postings.open(folder, "mentions")
        self._targets, self._called = Postings.open(folder, "targets"), Postings.open(folder, "called")
        self._telling = Postings.open(folder, "telling")
        self._documents = Postings.open(folder, "documents")  # by their texts
        self.text = np.asarray(np.load(folder / "text.npy", mmap_mode="r"))  # of each example
        self.text_vectors: Half = np.asarray(np.load(folder / "texts.npy", mmap_mode="r"))

    def of_document(self, text: str, picture: Vectors | None) -> Rows:
        """Examples of this text and this picture, a unit feature. Where either has none, the text decides."""
        rows = self._documents.of(hashed(text))
        return rows[self.bank.pictured(rows, picture)]

    def with_mention(self, form: str) -> npt.NDArray[np.int32]:
        """Examples whose mention is this folded form."""
        return self._mentions.of(key(form))

    def of(self, entity: int) -> npt.NDArray[np.int32]:
        """Examples of this entity."""
        return self._targets.of(entity)

    def of_each(
        self, entities: npt.NDArray[np.int64], most: int, hidden: Mask
    ) -> tuple[Rows, npt.NDArray[np.int64]]:
        """The first `most` examples of each of these entities, except hidden ones, entity after entity; and
        for each example the index of its entity."""
        rows, whose = self._targets.each(entities.astype(np.uint64))
        first = np.searchsorted(whose, whose)
        kept = (np.arange(len(rows)) - first < most) & ~hidden[rows]
        return rows[kept], whose[kept]

    def name_similarity(self, names: Sequence[str], vectors: Vectors) -> Vectors:
        """The greatest cosines of the names and aliases of entities with these folded names to some vectors,
        [entities, vectors]; 0 if the bank has no names."""
        rows, owner = self._called.each(np.array([key(name) for name in names], np.uint64))
        nearest = np.zeros((len(names), len(vectors)), np.float32)
        if len(rows):
            near = unit(np.asarray(self.bank.mention_vectors[rows], np.float32)) @ vectors.T
            first = np.flatnonzero(np.diff(owner, prepend=-1))
            nearest[owner[first]] = np.maximum.reduceat(near, first)
        return nearest

    def sharing_words(self, stems: Iterable[str], hidden: Mask) -> WeightedRows:
        """The entities of examples that share words with a text, without the hidden ones: the weight of an
        entity is that of its best example, as a share of the weight of all words."""
        lists = [self._telling.of(key(stem)) for stem in stems]
        weights = [math.log(len(self.text) / len(rows)) if len(rows) else 0.0 for rows in lists]
        whole = sum(weights) or 1.0
        kept = [(r, w / whole) for r, w in zip(lists, weights, strict=True) if 0 < len(r) < _FREQUENT]
        found = WeightedRows.summed([r for r, _ in kept], [w for _, w in kept])
        known = (self.entity[found.rows] != NO_ENTITY) & ~hidden[found.rows]
        entities, place = np.unique(self.entity[found.rows[known]], return_inverse=True)
        best = np.zeros(len(entities), np.float32)
        np.maximum.at(best, place, found.weights[known])
        return WeightedRows(entities, best)

    def picture(self, example: int) -> Vectors | None:
        """The unit feature of an example's picture, if it has one."""
        row = self.bank.image_row(example)
        return None if row < 0 else unit(self.bank.image_vectors[[row]])[0]

    def text_similarity(self, examples: npt.NDArray[np.int32], vector: Vectors) -> Vectors:
        """The cosine of each example's text and a text's vector."""
        similar: Vectors = self.text_vectors[self.text[examples]].astype(np.float32) @ vector
        return similar

    def picture_similarity(self, examples: npt.NDArray[np.int32], picture: Vectors | None) -> Vectors:
        """Cosine of each example's picture and a picture's unit feature; minus infinity where one is
        missing."""
        rows = self.bank.image_rows[examples]
        similar, seen = np.full(len(rows), -np.inf, np.float32), rows >= 0
        if picture is not None and seen.any():
            features = self.bank.image_vectors[rows[seen]]
            similar[seen] = features @ picture / np.maximum(np.linalg.norm(features, axis=1), 1e-30)
        return similar


def write(
    bank: Bank, entities: Entities, encode: Encode, folder: Path, former: Examples | None = None
) -> None:
    """Index the bank's examples. Texts that `former` has encoded are not encoded again."""
    targets = bank.table["target"].to_pylist()
    row_of = _first_rows(entities, set(targets))
    entity = np.array([row_of.get(name, NO_ENTITY) for name in targets], np.int32)
    np.save(folder / "entity.npy", entity)
    table = bank.table.slice(0, bank.examples)
    mentions = table["mention"].to_pylist()
    postings.write(((key(folded(m)), row) for row, m in enumerate(mentions)), folder, "mentions")
    known = np.flatnonzero(entity[: bank.examples] >= 0)
    pairs = zip(entity[known].tolist(), known.tolist(), strict=True)
    postings.write(pairs, folder, "targets")
    names = bank.table["target"].slice(bank.examples).to_pylist()
    called = ((key(folded(name)), row) for row, name in enumerate(names, bank.examples))
    postings.write(called, folder, "called")
    texts = table["text"].to_pylist()
    postings.write(((hashed(text), row) for row, text in enumerate(texts)), folder, "documents")
    postings.write(
        ((key(stem), row) for row, text in enumerate(texts) for stem in stems(folded(text))),
        folder,
        "telling",
    )
    distinct = {text: at for at, text in enumerate(dict.fromkeys(texts))}
    np.save(folder / "text.npy", np.array([distinct[text] for text in texts], np.int32))
    np.save(folder / "texts.npy", _vectors(list(distinct), encode, former))


def _first_rows(entities: Entities, names: Collection[str]) -> dict[str, int]:
    """The first entity with each of these names."""
    column = entities.table["name"]
    wanted = pc.is_in(column, pa.array(list(names), pa.string()))
    found: dict[str, int] = {}
    for row, name in zip(np.flatnonzero(wanted.to_numpy()), column.filter(wanted).to_pylist(), strict=True):
        found.setdefault(name, int(row))
    return found


def _vectors(texts: list[str], encode: Encode, former: Examples | None) -> Half:
    done: dict[str, int] = {}
    if former is not None:
        given = former.bank.table["text"].slice(0, former.bank.examples).to_pylist()
        done = dict(zip(given, former.text.tolist(), strict=True))
    new = [text for text in texts if text not in done]
    made = dict(zip(new, encode(new).astype(np.float16), strict=True)) if new else {}
    vectors = [former.text_vectors[done[t]] if former and t in done else made[t] for t in texts]
    return np.array(vectors, np.float16) if vectors else np.empty((0, 1), np.float16)
