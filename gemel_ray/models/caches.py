"""Caches of encoders' vectors: equal mentions and equal pictures are encoded once.

`CachedEncoder` caches texts in memory. `PictureCache` caches pictures by their bytes' digest, in a file of
the workspace that all workers and later jobs share; if it cannot be written, nothing is cached.
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
_TEXTS = 20_000
_PATIENCE = 30.0  # seconds that one writer waits for another
_PER_QUERY = 500  # digests in one query


class CachedEncoder:
    """`encode` of lists of texts, to [n, width], with a cache of the last 20,000. Thread-safe."""

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
            while len(self._known) > _TEXTS:
                del self._known[next(iter(self._known))]
        return [known[text] for text in texts]


class PictureCache:
    """At most `most` vectors in `file`; the oldest are removed first."""

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
        """The vectors that are cached, by digest."""
        wanted, found = list(digests), dict[bytes, Vector]()
        with self._lock, suppress(sqlite3.Error):
            for start in range(0, len(wanted) if self._base else 0, _PER_QUERY):
                assert self._base is not None
                some = wanted[start : start + _PER_QUERY]
                marks = ",".join("?" * len(some))
                rows = self._base.execute(
                    f"SELECT digest, vector FROM picture WHERE digest IN ({marks})", some
                )
                found |= {digest: np.frombuffer(vector, np.float32) for digest, vector in rows}
        return found

    def put(self, vectors: Mapping[bytes, Vector]) -> None:
        """Add these. They are dropped if the disk is full or another process locks the file."""
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
