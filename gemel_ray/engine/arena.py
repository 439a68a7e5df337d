"""Blocks of the key-value cache that belong to the rounds, and what prompts begin with, kept in them.

All of it is bookkeeping on the host, and knows nothing of vLLM. A mention's blocks, in order:

    beginning, beginning, ..., own, own, ... | private to each of its places

The private ones begin with the prompt's last, partial block. Beginnings are kept by use: one that no prompt
stands behind is dropped when its blocks are wanted, the one longest unused first. Mentions of one document
have its text in common behind that: while one of them is searched, the next ones copy what it has computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gemel_ray.engine.prompts import Written

_WORTH_COPYING = 16  # tokens: two copied blocks cost less, and a mention that waits for them a pass
Key = tuple["Beginning | None", bytes]


@dataclass(slots=True, eq=False)
class Beginning:
    """Its blocks, the last one perhaps partial, and its tokens; until it is `ready`, they are computed."""

    blocks: list[int]
    tokens: int
    ready: bool = False
    users: int = 0


@dataclass(slots=True, eq=False)
class Reading:
    """A prompt, or a beginning, under computation: from position `start` on, into these blocks, int32.
    `begun`: the beginning that it is."""

    written: Written
    blocks: npt.NDArray[np.int32]
    start: int
    done: int = 0
    begun: Beginning | None = None

    @property
    def left(self) -> int:
        return len(self.written) - self.done


class Arena:
    """`blocks` of `size` tokens each."""

    def __init__(self, blocks: Sequence[int], size: int) -> None:
        self.size, self.all = size, len(blocks)
        self._free = list(blocks)
        self._beginnings: dict[bytes, Beginning] = {}  # the one longest unused first
        self._prompts: dict[Key, Reading] = {}  # of mentions that are searched, by how they begin
        self._first: object = None  # who was refused first, and is let in before all others

    def blocks(self, tokens: int) -> int:
        """That so many tokens take."""
        return -(-tokens // self.size)

    def open_to(self, guest: object) -> bool:
        """Whether `guest` may take blocks, or another was refused before it."""
        return self._first is None or self._first is guest

    def settle(self, guest: object, *, waits: bool) -> None:
        """`guest` was refused, and waits; or wants nothing any more."""
        if waits and self._first is None:
            self._first = guest
        elif not waits and self._first is guest:
            self._first = None

    def take(self, number: int) -> list[int] | None:
        """`number` blocks, or None while there are not so many."""
        unused = [key for key, beginning in self._beginnings.items() if not beginning.users]
        while number > len(self._free) and unused:
            self.give(self._beginnings.pop(unused.pop(0)).blocks)
        if number > len(self._free):
            return None
        taken = self._free[len(self._free) - number :]
        del self._free[len(self._free) - number :]
        return taken

    def give(self, blocks: Sequence[int]) -> None:
        self._free += blocks

    def find(self, key: bytes) -> Beginning | None:
        """The beginning known by `key`, from now on the one used last."""
        if (found := self._beginnings.pop(key, None)) is not None:
            self._beginnings[key] = found
        return found

    def add(self, key: bytes, tokens: int) -> Beginning | None:
        """Blocks for a beginning that is not there yet, or None. Who computes it is its first user."""
        blocks = self.take(self.blocks(tokens))
        if blocks is None:
            return None
        self._beginnings[key] = Beginning(blocks, tokens, users=1)
        return self._beginnings[key]

    def copyable(self, prompt: Written, beginning: Beginning | None) -> tuple[Reading, int] | None:
        """A prompt behind the same beginning that has its first tokens in common with this one, and how many:
        enough to copy them, and never all."""
        found = self._prompts.get(_key(prompt, beginning))
        if found is None or len(prompt) <= _WORTH_COPYING:
            return None
        ours, theirs = prompt.identity[:-1], found.written.identity
        shorter = min(len(ours), len(theirs))
        differ = np.flatnonzero(ours[:shorter] != theirs[:shorter])
        return found, int(differ[0]) if len(differ) else shorter

    def enter(self, reading: Reading, beginning: Beginning | None) -> None:
        """Others may copy from this prompt until it leaves: the first one of those that begin alike."""
        self._prompts.setdefault(_key(reading.written, beginning), reading)

    def leave(self, reading: Reading, beginning: Beginning | None) -> None:
        key = _key(reading.written, beginning)
        if self._prompts.get(key) is reading:
            del self._prompts[key]

    def forget(self) -> None:
        """Drop all beginnings that no prompt stands behind."""
        for key in [key for key, beginning in self._beginnings.items() if not beginning.users]:
            self.give(self._beginnings.pop(key).blocks)


def _key(prompt: Written, beginning: Beginning | None) -> Key:
    return beginning, prompt.identity[:_WORTH_COPYING].tobytes()
