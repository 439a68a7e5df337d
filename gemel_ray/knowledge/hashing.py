"""Hashes of texts, for indexes: 64 bits that are the same on every machine."""

from __future__ import annotations

import hashlib
from functools import lru_cache


def hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


@lru_cache(maxsize=100_000)
def key(word: str) -> int:
    """The hash of a word or a name: these come again and again."""
    return hashed(word)
