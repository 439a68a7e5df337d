"""What an encoder said, remembered: equal mentions and equal pictures are encoded once.

`Remembered` is of strings, in memory. `PictureCache` is of pictures by their bytes' digest, in a file of
the workspace that all workers and later jobs share; one that cannot be written to is done without.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
_STRINGS = 20_000
_PATIENCE = 30.0  # seconds that one writer waits for another
_ASKED = 500  # digests in one question


class Remembered:
    """`encode` of lists of strings, to [n, width]; the last 20,000 answers are kept. Any thread may call."""

    def __init__(self, encode: Callable[[list[str]], npt.NDArray[np.float32]]) -> None:
        self._encode, self._lock = encode, threading.Lock()
        self._known: dict[str, Vector] = {}

    def __call__(self, texts: list[str]) -> list[Vector]:
        with self._lock:
            known = {text: self._known[text] for text in texts if text in self._known}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known |= zip(new, self._encode(new) if new else (), strict=True)
        with self._lock:
            self._known |= {text: known[text] for text in new}
            while len(self._known) > _STRINGS:
                del self._known[next(iter(self._known))]
        return [known[text] for text in texts]


class PictureCache:
    """At most `most` vectors in `file`, the oldest given up first."""

    def __init__(self, file: Path, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._base: sqlite3.Connection | None = None
        with suppress(OSError, sqlite3.Error):
            file.parent.mkdir(parents=True, exist_ok=True)
            base = sqlite3.connect(file, timeout=_PATIENCE, check_same_thread=False, isolation_level=None)
            base.execute("PRAGMA journal_mode=WAL")
            base.execute("PRAGMA synchronous=NORMAL")
            base.execute(
                "CREATE TABLE IF NOT EXISTS picture"
                " (number INTEGER PRIMARY KEY AUTOINCREMENT,"
                " digest BLOB UNIQUE NOT NULL, vector BLOB NOT NULL)"
            )
            self._base = base

    def get(self, digests: Iterable[bytes]) -> dict[bytes, Vector]:
        """Of those that are there."""
        wanted, found = list(digests), dict[bytes, Vector]()
        with self._lock, suppress(sqlite3.Error):
            for start in range(0, len(wanted) if self._base else 0, _ASKED):
                assert self._base is not None
                some = wanted[start : start + _ASKED]
                marks = ",".join("?" * len(some))
                rows = self._base.execute(
                    f"SELECT digest, vector FROM picture WHERE digest IN ({marks})", some
                )
                found |= {digest: np.frombuffer(vector, np.float32) for digest, vector in rows}
        return found

    def put(self, vectors: Mapping[bytes, Vector]) -> None:
        """Keep these too. On a full disk, or where another holds the file, they are not kept."""
        if self._base is None or not vectors:
            return
        rows = [(digest, np.asarray(vector, np.float32).tobytes()) for digest, vector in vectors.items()]
        with self._lock, suppress(sqlite3.Error), self._base:
            self._base.execute("BEGIN IMMEDIATE")
            self._base.executemany("INSERT OR IGNORE INTO picture (digest, vector) VALUES (?, ?)", rows)
            self._base.execute(
                "DELETE FROM picture WHERE number <= (SELECT max(number) FROM picture) - ?", [self._most]
            )

    def close(self) -> None:
        if self._base is not None:
            self._base.close()
