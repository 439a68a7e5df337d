"""The demonstration bank: solved examples, then the knowledge base's names, tokenised once, with their
pictures' features.

Row i is point i of the vector store. Memory-mapped; Retrieve returns rows, Assemble and the engine
look them up here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gemel_ray.knowledge.columns import values
from gemel_ray.knowledge.hashing import MentionWords, hashed
from gemel_ray.knowledge.thumbnails import Thumbnails
from gemel_ray.models.encoders import Vectors, unit

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),  # document_id/mention_id
        pa.field("text", pa.string()),
        pa.field("mention", pa.string()),
        pa.field("target", pa.string()),
        pa.field("tokens", pa.list_(pa.int32())),  # of the whole piece after the visual prefix
        pa.field("image_row", pa.int32()),  # row of image_vectors.npy, or -1
    ]
)


Picture = npt.NDArray[np.float32]
_SAME = 0.995  # the cosine of a picture and itself, also in another size or precision
_IMAGE_ROWS = "image_rows.npy"
_BATCH = 65_536
QUERY_IMAGE = -1  # how a prompt refers to the picture of the mention asked about


def image_of(row: int) -> int:
    """How a prompt refers to the picture of row `row` of the bank; and back."""
    return -2 - row


class Bank:
    """A read-only view of the files that `write` made."""

    def __init__(
        self,
        table: pa.Table,
        image_vectors: npt.NDArray[np.float32],
        keys: npt.NDArray[np.uint64],
        key_rows: npt.NDArray[np.int64],
        mention_vectors: npt.NDArray[np.float32],
        image_rows: npt.NDArray[np.int32],
        thumbnails: Thumbnails | None = None,
        words: MentionWords | None = None,
    ) -> None:
        self.table, self.image_vectors = table, image_vectors
        self.mention_vectors = mention_vectors  # [rows, width]
        self.image_rows = image_rows  # of each row, the row of `image_vectors`, or -1
        self.thumbnails = thumbnails  # of the pictures
        self._words = words
        self._keys, self._key_rows = keys, key_rows
        self._ids, self._mentions, self._targets = (table[name] for name in ("id", "mention", "target"))
        chunks = table["tokens"].chunks  # as they are in the file: together they would be a copy
        self._tokens = [(chunk.offsets.to_numpy(), chunk.values.to_numpy()) for chunk in chunks]
        self._chunk_starts = [0, *accumulate(map(len, chunks))]

    @classmethod
    def open(cls, folder: Path) -> Bank:
        """Map the bank in `folder`."""
        table = pa.ipc.open_file(pa.memory_map(str(folder / "bank.arrow"))).read_all()
        names = ("image_vectors", "keys", "key_rows", "mention_vectors")
        # Plain arrays over the mapping: numpy's class for mapped files is slow.
        mapped = (np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in names)
        vectors, keys, rows, mentions = mapped
        if (file := folder / _IMAGE_ROWS).exists():
            pictures = np.asarray(np.load(file, mmap_mode="r"))
        else:  # of a workspace of an earlier version
            pictures = table["image_row"].to_numpy()
        small, words = Thumbnails.open(folder), MentionWords.open(folder)
        return cls(table, vectors, keys, rows, mentions, pictures, small, words)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def examples(self) -> int:
        """The number of solved examples: the first rows. Names follow."""
        return len(self._keys)

    def ids(self, rows: Sequence[int]) -> list[str]:
        """Identifiers of `rows`."""
        # pyarrow's take would put all chunks of the column together first.
        return [self._ids[int(row)].as_py() for row in rows]

    def row(self, identifier: str) -> int | None:
        """The first row of that id, or None."""
        row = int(pc.index(self._ids, identifier).as_py())
        return row if row >= 0 else None

    def text(self, row: int) -> str:
        """The example's whole text."""
        text: str = self.table["text"][row].as_py()
        return text

    def tokens(self, row: int) -> npt.NDArray[np.int32]:
        """Token ids of the example's text piece."""
        chunk = bisect_right(self._chunk_starts, row) - 1
        offsets, values = self._tokens[chunk]
        at = row - self._chunk_starts[chunk]
        ids: npt.NDArray[np.int32] = values[offsets[at] : offsets[at + 1]]
        return ids

    def mention(self, row: int) -> str:
        """The example's mention."""
        text: str = self._mentions[row].as_py()
        return text

    def words(self) -> MentionWords:
        """The words of all mentions. Only a workspace of an earlier version has to collect them."""
        return self._words or MentionWords.of(values(self._mentions))

    def target(self, row: int) -> str:
        """Name of the example's entity."""
        name: str = self._targets[row].as_py()
        return name

    def has_image(self, row: int) -> bool:
        return bool(self.image_rows[row] >= 0)

    def image_row(self, row: int) -> int:
        """The row of `image_vectors`, or -1."""
        return int(self.image_rows[row])

    def thumbnail(self, row: int) -> bytes | None:
        """The example's picture as a small JPEG, if there is one."""
        return self.thumbnails.of(self.image_row(row)) if self.thumbnails is not None else None

    def same(
        self, texts: Sequence[str], mentions: Sequence[str], pictures: Sequence[Picture | None]
    ) -> list[list[int]]:
        """The rows with exactly each text, mention and picture, as CLIP's feature: they must not demonstrate
        themselves."""
        wanted = np.array([key(*pair) for pair in zip(texts, mentions, strict=True)], np.uint64)
        first = np.searchsorted(self._keys, wanted, side="left").tolist()
        last = np.searchsorted(self._keys, wanted, side="right").tolist()
        found = [self._key_rows[a:b] for a, b in zip(first, last, strict=True)]
        pairs = zip(found, pictures, strict=True)
        return [rows[self.pictured(rows, picture)].tolist() for rows, picture in pairs]

    def pictured(self, rows: npt.NDArray[Any], picture: Picture | None) -> npt.NDArray[np.bool_]:
        """Which of `rows` have this picture, as CLIP's feature [feature]; all whose picture is not known
        from it, because one of the two has none."""
        at = self.image_rows[rows]
        if picture is None or not len(rows) or not len(self.image_vectors):
            return np.ones(len(rows), np.bool_)
        cosines = unit(self.image_vectors[np.maximum(at, 0)]) @ unit(picture[None])[0]
        return np.asarray((at < 0) | (cosines > _SAME))


def key(text: str, mention: str) -> np.uint64:
    """Hash of an example's text and mention."""
    return np.uint64(hashed(f"{mention}\0{text}"))


def write(
    examples: Iterable[pa.Table],
    names: Iterable[pa.Table],
    image_vectors: npt.NDArray[np.float32],
    mention_vectors: npt.NDArray[np.float32],
    folder: Path,
) -> Bank:
    """Write the bank, solved examples before the knowledge base's names, and open it. `image_vectors` float32
    [pictures, feature], `mention_vectors` float32 [rows, width]. A name that is also the caption of an
    example is not added again."""
    folder.mkdir(parents=True, exist_ok=True)
    keys: list[np.uint64] = []
    solved = list(examples)
    for table in solved:
        pairs = zip(table["text"].to_pylist(), table["mention"].to_pylist(), strict=True)
        keys += [key(text, mention) for text, mention in pairs]
    whole = pa.concat_tables([SCHEMA.empty_table(), *solved, *names])
    with pa.ipc.new_file(str(folder / "bank.arrow"), SCHEMA) as file:
        for start in range(0, len(whole), _BATCH):
            file.write_table(whole.slice(start, _BATCH).combine_chunks())
    np.save(folder / _IMAGE_ROWS, whole["image_row"].to_numpy())
    MentionWords.of(values(whole["mention"])).save(folder)
    order = np.argsort(np.array(keys, np.uint64), kind="stable")
    np.save(folder / "keys.npy", np.array(keys, np.uint64)[order])
    np.save(folder / "key_rows.npy", order.astype(np.int64))
    np.save(folder / "image_vectors.npy", image_vectors)
    np.save(folder / "mention_vectors.npy", mention_vectors)
    return Bank.open(folder)


# Shared demonstration sets: a few lists of solved examples, each in the prompts of many mentions.
#
# The beginning of a prompt is computed once and then found in the engine's prefix cache, so a mention costs
# only what follows its set. The bank's examples are clustered by their mentions' vectors (k-means), and each
# cluster is represented by examples from its rim to its middle, of different entities.
# Not in the paper: docs/performance.md has what it gives and what it takes. The same in every process.


Rows = npt.NDArray[np.int64]
_SAMPLE = 50_000  # examples that are clustered, of larger banks
_ROUNDS = 10


class SharedSets:
    """At most `number` sets of `size` solved examples of the bank."""

    def __init__(self, bank: Bank, number: int, size: int) -> None:
        random = np.random.default_rng(0)
        count = min(bank.examples, _SAMPLE)
        sample = (
            np.sort(random.choice(bank.examples, count, replace=False)) if count else np.empty(0, np.int64)
        )
        vectors = unit(np.asarray(bank.mention_vectors)[sample])
        self._centres = _centres(vectors, vectors[random.permutation(count)[:number]])
        nearness = vectors @ self._centres.T  # [examples, sets]
        member = nearness.argmax(axis=1) if count else np.empty(0, np.int64)
        self._rows = [
            _chosen(bank, sample, nearness[:, i], np.flatnonzero(member == i), size)
            for i in range(len(self._centres))
        ]

    def of(self, vectors: Vectors) -> list[Rows]:
        """The rows of the bank for mentions with these vectors, float32 [n, width]."""
        if not self._rows:
            return [np.empty(0, np.int64)] * len(vectors)
        return [self._rows[i] for i in (unit(vectors) @ self._centres.T).argmax(axis=1)]


def _centres(vectors: Vectors, centres: Vectors) -> Vectors:
    """k-means of unit vectors [n, width] by cosine, from these centres; one without members stays."""
    for _ in range(_ROUNDS):
        member = (vectors @ centres.T).argmax(axis=1) if len(centres) else np.empty(0, np.int64)
        sums = np.zeros_like(centres)
        np.add.at(sums, member, vectors)
        centres = np.where(sums.any(axis=1, keepdims=True), unit(sums), centres)
    return centres


def _chosen(bank: Bank, sample: Rows, nearness: Vectors, members: Rows, size: int) -> Rows:
    """`size` examples of a cluster, from its rim to its middle, of different entities as far as possible; a
    small cluster borrows from its neighbours."""
    if len(members) < size:
        members = np.argsort(-nearness, kind="stable")[: 4 * size]
    members = members[np.argsort(nearness[members], kind="stable")]
    rows = sample[members]
    targets = [bank.target(int(row)) for row in rows]
    last = {target: at for at, target in enumerate(targets)}  # the most central of each entity
    different = np.array(sorted(last.values()), np.int64)
    pool = different if len(different) >= size else np.arange(len(rows))
    return rows[pool[np.unique(np.linspace(0, len(pool) - 1, min(size, len(pool))).round().astype(int))]]


# Demonstrations in exactly the order of GEMEL's code, for results that must equal GEMEL's.
#
# That code sorts the cosines of all examples by numpy's default sort, which is not stable: among twenty
# examples with one mention, that sort and the last bits of the cosines decide which are in the prompt and in
# which order. Only the same arithmetic on the same numbers gives the same. It costs a pass over the whole
# bank per mention (3 ms for 11,000 examples of 768 numbers). (Official code: utils.py.)


Matrix = npt.NDArray[np.float32]


class PublishedOrder:
    """The bank's mention vectors in their original order, at unit length."""

    def __init__(self, bank: Bank) -> None:
        self._unit = _published_unit(bank.mention_vectors)

    def nearest(
        self, queries: Matrix, count: int, without: Sequence[Sequence[int]]
    ) -> list[npt.NDArray[np.int64]]:
        """`count` rows of the bank for each of `queries`, float32 [n, width], most similar first."""
        found = []
        for query, left_out in zip(_published_unit(queries), without, strict=True):
            order = np.argsort((self._unit @ query[:, None])[:, 0])
            order = order[~np.isin(order, left_out)] if left_out else order
            found.append(order[::-1][:count])
        return found


def _published_unit(vectors: Matrix) -> Matrix:
    """The vectors at unit length, to the last bit as scikit-learn's cosine_similarity scales them."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    lengths[lengths == 0] = 1
    return vectors / lengths[:, None]
