"""Small JPEG pictures of the demonstrations, for display with an answer: no stage reads them.

One file, bank/thumbnails.arrow, memory-mapped: row i is the picture of row i of image_vectors.npy. A
workspace of an earlier version, or without pictures, has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pyarrow as pa
from PIL import Image

from gemel_ray.pictures.images import read_image
from gemel_ray.pictures.limits import ImageError, ImageLimits

FILE = "thumbnails.arrow"
_SIDE = 160  # pixels, the longest
_SCHEMA = pa.schema([pa.field("jpeg", pa.binary())])
_ROWS = 1024  # written at once


def thumbnail(image: Image.Image, side: int = _SIDE) -> bytes:
    """The picture as a JPEG whose longest side is at most `side` pixels."""
    small, out = image.copy(), BytesIO()
    small.thumbnail((side, side))
    small.save(out, "JPEG", quality=80)
    return out.getvalue()


class Collected:
    """Thumbnails of the documents that a build encodes, from the pictures that Encode decodes."""

    def __init__(self, wanted: bool, limits: ImageLimits) -> None:
        self.wanted, self._limits = wanted, limits
        self._made: dict[str | bytes | None, bytes | None] = {None: None}

    def of(self, documents: pa.Table, good: Sequence[bool]) -> pa.Array:
        """A JPEG or null for each of the documents that were encoded last; `good`: those without an error."""
        pictures = zip(
            documents["image"].to_pylist(), documents["image_address"].to_pylist(), good, strict=True
        )
        found = [self._of(data, at) if fine and self.wanted else None for data, at, fine in pictures]
        self._made = {None: None}
        return pa.array(found, pa.binary())

    def add(self, picture: tuple[bytes | None, str | None], image: Image.Image) -> None:
        """A picture as Encode decoded it, by its bytes and address."""
        data, address = picture
        self._made[address or data] = thumbnail(image)

    def _of(self, data: bytes | None, address: str | None) -> bytes | None:
        name = address or data
        if name not in self._made:  # its feature was cached, so it was not decoded
            try:
                self._made[name] = thumbnail(read_image(data, address, self._limits, _SIDE))
            except ImageError:
                self._made[name] = None
        return self._made[name]


class Thumbnails:
    """A read-only view of the file that `writing` made."""

    def __init__(self, table: pa.Table) -> None:
        self._pictures = table["jpeg"]

    @classmethod
    def open(cls, folder: Path) -> Thumbnails | None:
        """Map the bank's thumbnails, if it has any."""
        file = folder / FILE
        return cls(pa.ipc.open_file(pa.memory_map(str(file))).read_all()) if file.exists() else None

    def of(self, picture: int) -> bytes | None:
        """The JPEG of a row of image_vectors.npy, or None."""
        jpeg: bytes | None = self._pictures[picture].as_py() if 0 <= picture < len(self._pictures) else None
        return jpeg


class ThumbnailWriter:
    """Takes thumbnails in the order of their pictures, and writes in batches."""

    def __init__(self, file: pa.ipc.RecordBatchFileWriter) -> None:
        self._file, self._waiting = file, list[bytes | None]()
        self.kept = 0

    def add(self, jpeg: bytes | None) -> None:
        self._waiting.append(jpeg)
        self.kept += jpeg is not None
        if len(self._waiting) >= _ROWS:
            self.flush()

    def flush(self) -> None:
        self._file.write_batch(pa.record_batch([pa.array(self._waiting, pa.binary())], schema=_SCHEMA))
        self._waiting.clear()


@contextmanager
def writing(folder: Path) -> Iterator[ThumbnailWriter]:
    """Write the bank's thumbnails; if there are none, no file is left."""
    folder.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_file(str(folder / FILE), _SCHEMA) as file:
        writer = ThumbnailWriter(file)
        yield writer
        writer.flush()
    if not writer.kept:
        (folder / FILE).unlink()
