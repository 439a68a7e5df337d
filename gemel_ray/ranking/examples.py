"""What the solved examples say: who was meant by a mention, in which texts an entity stands, how it looks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemel_ray.knowledge.bank import Bank
from gemel_ray.knowledge.entities import Entities
from gemel_ray.models.clip import unit
from gemel_ray.ranking import postings
from gemel_ray.ranking.postings import Postings
from gemel_ray.ranking.words import folded, key

Vectors = npt.NDArray[np.float32]
Half = npt.NDArray[np.float16]
Encode = Callable[[list[str]], Vectors]
NOBODY = -1


class Examples:
    """The files that `write` made beside the bank's own."""

    def __init__(self, folder: Path, bank: Bank) -> None:
        self.bank = bank
        self.entity = np.asarray(np.load(folder / "entity.npy", mmap_mode="r"))  # of each row of the bank
        self._mentions = Postings.open(folder, "mentions")
        self._targets = Postings.open(folder, "targets")
        self.text = np.asarray(np.load(folder / "text.npy", mmap_mode="r"))  # of each example
        self.text_vectors: Half = np.load(folder / "texts.npy", mmap_mode="r")
        self._picture = bank.table["image_row"].to_numpy()
        self._features = unit(np.asarray(bank.image_vectors)) if len(bank.image_vectors) else None

    def meant(self, form: str) -> npt.NDArray[np.int32]:
        """Examples whose mention is this folded form."""
        return self._mentions.of(key(form))

    def of(self, entity: int) -> npt.NDArray[np.int32]:
        """Examples of this entity."""
        return self._targets.of(entity)

    def picture(self, example: int) -> Vectors | None:
        """The unit feature of an example's picture, if it has one."""
        row = int(self._picture[example])
        return None if row < 0 or self._features is None else self._features[row]

    def fits(self, examples: npt.NDArray[np.int32], vector: Vectors) -> Vectors:
        """Cosine of each example's text and a text's vector."""
        similar: Vectors = self.text_vectors[self.text[examples]].astype(np.float32) @ vector
        return similar

    def looks(self, examples: npt.NDArray[np.int32], picture: Vectors) -> float:
        """The greatest cosine of the examples' pictures and a picture's unit feature; 0 without any."""
        rows = self._picture[examples]
        rows = rows[rows >= 0]
        if self._features is None or not len(rows):
            return 0.0
        return float((self._features[rows] @ picture).max())


def write(
    bank: Bank, entities: Entities, encode: Encode, folder: Path, former: Examples | None = None
) -> None:
    """Index the bank's examples. Texts that `former` has encoded are not encoded again."""
    row_of: dict[str, int] = {}
    for row, name in enumerate(entities.names()):
        row_of.setdefault(name, row)
    targets = [row_of.get(name, NOBODY) for name in bank.table["target"].to_pylist()]
    entity = np.array(targets, np.int32)
    np.save(folder / "entity.npy", entity)
    table = bank.table.slice(0, bank.examples)
    mentions = table["mention"].to_pylist()
    postings.write(((key(folded(m)), row) for row, m in enumerate(mentions)), folder, "mentions")
    known = np.flatnonzero(entity[: bank.examples] >= 0)
    pairs = zip(entity[known].tolist(), known.tolist(), strict=True)
    postings.write(pairs, folder, "targets")
    texts = table["text"].to_pylist()
    distinct = {text: at for at, text in enumerate(dict.fromkeys(texts))}
    np.save(folder / "text.npy", np.array([distinct[text] for text in texts], np.int32))
    np.save(folder / "texts.npy", _vectors(list(distinct), encode, former))


def _vectors(texts: list[str], encode: Encode, former: Examples | None) -> Half:
    done: dict[str, int] = {}
    if former is not None:
        given = former.bank.table["text"].slice(0, former.bank.examples).to_pylist()
        done = dict(zip(given, former.text.tolist(), strict=True))
    new = [text for text in texts if text not in done]
    made = dict(zip(new, encode(new).astype(np.float16), strict=True)) if new else {}
    vectors = [former.text_vectors[done[t]] if former and t in done else made[t] for t in texts]
    return np.array(vectors, np.float16) if vectors else np.empty((0, 1), np.float16)
