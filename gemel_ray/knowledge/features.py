"""Picture features that came ready-made, by the picture's key (GEMEL's img_url or img_name), memory-mapped.

A key is compared as HDF5 spells it, where URLs come from: "https://a//b" and "https:/a/b" are one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemel_ray.errors import Mistake


class Features:
    """A read-only view of the files that `write` made."""

    def __init__(self, keys: npt.NDArray[np.uint64], vectors: npt.NDArray[np.float32]) -> None:
        self._keys, self.vectors = keys, vectors

    @classmethod
    def open(cls, folder: Path) -> Features:
        """Map the features in `folder`."""
        keys, vectors = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("keys", "vectors"))
        return cls(keys, vectors)

    def __len__(self) -> int:
        return len(self._keys)

    def of(self, key: str) -> npt.NDArray[np.float32] | None:
        """The feature, float32 [feature], or None where there is none of that key."""
        wanted = _hash(key)
        at = int(np.searchsorted(self._keys, wanted))
        return self.vectors[at] if at < len(self._keys) and self._keys[at] == wanted else None


def write(keys: Sequence[str], vectors: npt.NDArray[np.float32], folder: Path) -> Features:
    """Write the features, float32 [pictures, feature], and open them. ValueError for a key given twice."""
    folder.mkdir(parents=True, exist_ok=True)
    hashes = np.array([_hash(key) for key in keys], np.uint64)
    order = np.argsort(hashes)
    if len(np.unique(hashes)) < len(hashes):
        raise Mistake("two pictures have the same key")
    np.save(folder / "keys.npy", hashes[order])
    np.save(folder / "vectors.npy", vectors[order])
    return Features.open(folder)


def _hash(key: str) -> np.uint64:
    spelled = re.sub("/+", "/", key).strip("/")
    return np.uint64(int.from_bytes(hashlib.blake2b(spelled.encode(), digest_size=8).digest()))
