"""The demonstration bank: solved examples and, behind them, the knowledge base's own names, tokenised once,
with their pictures' features.

Row i is point i of the vector store. Memory-mapped; Retrieve returns rows, Assemble and the engine
look them up here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gemel_ray.knowledge.thumbnails import Thumbnails

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),  # document_id/mention_id
        pa.field("text", pa.string()),
        pa.field("mention", pa.string()),
        pa.field("target", pa.string()),
        pa.field("tokens", pa.list_(pa.int32())),  # of the whole piece behind the visual prefix
        pa.field("image_row", pa.int32()),  # of image_vectors.npy, or -1
    ]
)


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
        thumbnails: Thumbnails | None = None,
    ) -> None:
        self.table, self.image_vectors = table, image_vectors
        self.mention_vectors = mention_vectors  # [rows, width]
        self.thumbnails = thumbnails  # of the pictures
        self._keys, self._key_rows = keys, key_rows
        self._ids, self._mentions, self._targets = (table[name] for name in ("id", "mention", "target"))
        tokens: pa.ListArray = table["tokens"].combine_chunks() if len(table) else None
        self._tokens = tokens.values.to_numpy() if len(table) else np.empty(0, np.int32)
        self._start = tokens.offsets.to_numpy() if len(table) else np.zeros(1, np.int32)
        self._image_row = table["image_row"].to_numpy()

    @classmethod
    def open(cls, folder: Path) -> Bank:
        """Map the bank in `folder`."""
        table = pa.ipc.open_file(pa.memory_map(str(folder / "bank.arrow"))).read_all()
        names = ("image_vectors", "keys", "key_rows", "mention_vectors")
        # Plain arrays over the mapping: numpy is slow with its own class for mapped files.
        mapped = (np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in names)
        vectors, keys, rows, mentions = mapped
        return cls(table, vectors, keys, rows, mentions, Thumbnails.open(folder))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def examples(self) -> int:
        """The first rows, which are solved examples; behind them are names."""
        return len(self._keys)

    def ids(self, rows: Sequence[int]) -> list[str]:
        """Identifiers of `rows`."""
        ids: list[str] = self._ids.take(pa.array(rows, pa.int64())).to_pylist()
        return ids

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
        ids: npt.NDArray[np.int32] = self._tokens[self._start[row] : self._start[row + 1]]
        return ids

    def mention(self, row: int) -> str:
        """The example's mention."""
        text: str = self._mentions[row].as_py()
        return text

    def mentions(self) -> list[str]:
        """Of all rows."""
        mentions: list[str] = self._mentions.to_pylist()
        return mentions

    def target(self, row: int) -> str:
        """Name of the example's entity."""
        name: str = self._targets[row].as_py()
        return name

    def has_image(self, row: int) -> bool:
        return bool(self._image_row[row] >= 0)

    def image_row(self, row: int) -> int:
        """Row of `image_vectors`, or -1."""
        return int(self._image_row[row])

    def thumbnail(self, row: int) -> bytes | None:
        """The example's picture as a small JPEG, where it has one and it was kept."""
        return self.thumbnails.of(self.image_row(row)) if self.thumbnails is not None else None

    def same(self, texts: Sequence[str], mentions: Sequence[str]) -> list[list[int]]:
        """Rows with each very text and mention: they must not demonstrate themselves."""
        wanted = np.array([key(*pair) for pair in zip(texts, mentions, strict=True)], np.uint64)
        first = np.searchsorted(self._keys, wanted, side="left").tolist()
        last = np.searchsorted(self._keys, wanted, side="right").tolist()
        return [self._key_rows[a:b].tolist() for a, b in zip(first, last, strict=True)]


def key(text: str, mention: str) -> np.uint64:
    """Hash of an example's text and mention."""
    digest = hashlib.blake2b(f"{mention}\0{text}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest))


def write(
    examples: Iterable[pa.Table],
    names: Iterable[pa.Table],
    image_vectors: npt.NDArray[np.float32],
    mention_vectors: npt.NDArray[np.float32],
    folder: Path,
) -> Bank:
    """Write the bank, solved examples before the knowledge base's own names, and open it. `image_vectors`
    float32 [pictures, feature], `mention_vectors` float32 [rows, width]. Of a caption that is nothing but a
    name, the name is no other example."""
    folder.mkdir(parents=True, exist_ok=True)
    keys: list[np.uint64] = []
    with pa.ipc.new_file(str(folder / "bank.arrow"), SCHEMA) as file:
        for table in examples:
            file.write_table(table)
            pairs = zip(table["text"].to_pylist(), table["mention"].to_pylist(), strict=True)
            keys += [key(text, mention) for text, mention in pairs]
        for table in names:
            file.write_table(table)
    order = np.argsort(np.array(keys, np.uint64), kind="stable")
    np.save(folder / "keys.npy", np.array(keys, np.uint64)[order])
    np.save(folder / "key_rows.npy", order.astype(np.int64))
    np.save(folder / "image_vectors.npy", image_vectors)
    np.save(folder / "mention_vectors.npy", mention_vectors)
    return Bank.open(folder)
