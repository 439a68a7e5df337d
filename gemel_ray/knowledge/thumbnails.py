"""Small JPEG pictures of the demonstrations, for people who look at an answer: no stage reads them.

One file, bank/thumbnails.arrow, memory-mapped: row i is the picture of row i of image_vectors.npy. A
workspace that was built before they were kept, or without pictures, has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pyarrow as pa
from PIL import Image

FILE = "thumbnails.arrow"
_SIDE = 160  # pixels, the longest
_SCHEMA = pa.schema([pa.field("jpeg", pa.binary())])
_ROWS = 1024  # written at once


def thumbnail(image: Image.Image) -> bytes:
    """The picture as a JPEG whose longest side is 160 pixels at most."""
    small, out = image.copy(), BytesIO()
    small.thumbnail((_SIDE, _SIDE))
    small.save(out, "JPEG", quality=80)
    return out.getvalue()


class Thumbnails:
    """A read-only view of the file that `writing` made."""

    def __init__(self, table: pa.Table) -> None:
        self._pictures = table["jpeg"]

    @classmethod
    def open(cls, folder: Path) -> Thumbnails | None:
        """Map the bank's thumbnails, where it has any."""
        file = folder / FILE
        return cls(pa.ipc.open_file(pa.memory_map(str(file))).read_all()) if file.exists() else None

    def of(self, picture: int) -> bytes | None:
        """The JPEG of a row of image_vectors.npy; None where none was kept."""
        jpeg: bytes | None = self._pictures[picture].as_py() if 0 <= picture < len(self._pictures) else None
        return jpeg


class ThumbnailWriter:
    """Takes them in the order of their pictures, and writes as it goes."""

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
    """Write the bank's thumbnails; without a single one there is no file."""
    folder.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_file(str(folder / FILE), _SCHEMA) as file:
        writer = ThumbnailWriter(file)
        yield writer
        writer.flush()
    if not writer.kept:
        (folder / FILE).unlink()
