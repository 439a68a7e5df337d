"""The columns of the rounds: which mention is in which column, which joins next, and its blocks in the cache.

This is bookkeeping on the host, and knows nothing of vLLM. The Arena has the blocks of the key-value cache
that belong to the rounds. A mention's blocks, in order:

    beginning, beginning, ..., rest, rest, ... | private to each of its places

The private ones begin with the prompt's last, partial block. Beginnings are cached: one that no prompt uses
is dropped when its blocks are needed, the least recently used first. Mentions of one document have its text
in common after the beginning: while one of them is searched, the next ones copy what it has computed.

Waiting mentions join in order, except those whose beginning, or document's text, is still being computed. If
blocks are short, the mention that was refused first is admitted first, whatever rounds it belongs to: so a
wide search among narrow ones does not starve."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt

from gemel_ray.engine.work import Candidate, Outcome, TokenPrompt, Usage

_WORTH_COPYING = 16  # tokens: two copied blocks cost less, and a mention that waits for them a pass
Key = tuple["Beginning | None", bytes]
BEGINNING = -1  # in the place of a column
Whole = npt.NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Beginning:
    """A beginning's blocks, the last one perhaps partial, and its tokens; they are complete when it is
    `ready`."""

    blocks: list[int]
    tokens: int
    ready: bool = False
    users: int = 0


@dataclass(slots=True, eq=False)
class Reading:
    """A prompt, or a beginning, under computation: from position `start` on, into these blocks, int32.
    `begun`: the beginning that it is."""

    written: TokenPrompt
    blocks: npt.NDArray[np.int32]
    start: int
    done: int = 0
    begun: Beginning | None = None

    @property
    def left(self) -> int:
        return len(self.written) - self.done


class Arena:
    """The `blocks` of the rounds, of `size` tokens each."""

    def __init__(self, blocks: Sequence[int], size: int) -> None:
        self.size, self.all = size, len(blocks)
        self._free = list(blocks)
        self._beginnings: dict[bytes, Beginning] = {}  # the least recently used first
        self._prompts: dict[Key, Reading] = {}  # of mentions in search, by their beginnings
        self._first: object = None  # the one that was refused first, and is admitted before all others

    def blocks(self, tokens: int) -> int:
        """The number of blocks for a number of tokens."""
        return -(-tokens // self.size)

    def open_to(self, asker: object) -> bool:
        """Whether `asker` may take blocks: no other was refused before it."""
        return self._first is None or self._first is asker

    def settle(self, asker: object, *, waits: bool) -> None:
        """Record that `asker` was refused and waits, or that it no longer waits."""
        if waits and self._first is None:
            self._first = asker
        elif not waits and self._first is asker:
            self._first = None

    def take(self, number: int) -> list[int] | None:
        """`number` blocks, or None while there are fewer."""
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
        """The beginning with this key, which becomes the most recently used."""
        if (found := self._beginnings.pop(key, None)) is not None:
            self._beginnings[key] = found
        return found

    def add(self, key: bytes, tokens: int) -> Beginning | None:
        """Blocks for a new beginning, or None. The mention that computes it is its first user."""
        blocks = self.take(self.blocks(tokens))
        if blocks is None:
            return None
        self._beginnings[key] = Beginning(blocks, tokens, users=1)
        return self._beginnings[key]

    def copyable(self, prompt: TokenPrompt, beginning: Beginning | None) -> tuple[Reading, int] | None:
        """Another prompt after the same beginning that shares its first tokens with this one, and their
        number: only if copying them pays, and never all."""
        found = self._prompts.get(_key(prompt, beginning))
        if found is None or len(prompt) <= _WORTH_COPYING:
            return None
        ours, theirs = prompt.identity[:-1], found.written.identity
        shorter = min(len(ours), len(theirs))
        differ = np.flatnonzero(ours[:shorter] != theirs[:shorter])
        return found, int(differ[0]) if len(differ) else shorter

    def enter(self, reading: Reading, beginning: Beginning | None) -> None:
        """Let others copy from this prompt until it leaves, if it is the first one with its beginning."""
        self._prompts.setdefault(_key(reading.written, beginning), reading)

    def leave(self, reading: Reading, beginning: Beginning | None) -> None:
        key = _key(reading.written, beginning)
        if self._prompts.get(key) is reading:
            del self._prompts[key]

    def forget(self) -> None:
        """Drop all beginnings that no prompt uses."""
        for key in [key for key, beginning in self._beginnings.items() if not beginning.users]:
            self.give(self._beginnings.pop(key).blocks)


def _key(prompt: TokenPrompt, beginning: Beginning | None) -> Key:
    return beginning, prompt.identity[:_WORTH_COPYING].tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class Mention:
    """A prompt to be searched: a `beginning`, which others may share or which is empty, and the `rest`.
    `judged`: the leaves of names that are scored even if the search does not find them."""

    beginning: TokenPrompt
    rest: TokenPrompt
    outcome: Outcome[list[Candidate]]
    usage: Usage
    judged: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return len(self.beginning) + len(self.rest)


@dataclass(slots=True, eq=False)
class Occupant:
    """The mention in a column, its prompt, and its blocks except the beginning's; the names found, and the
    names that are judged at present: none during the search."""

    mention: Mention
    beginning: Beginning | None
    blocks: list[int]
    reading: Reading
    found: list[Candidate] = field(default_factory=list)
    judging: tuple[int, ...] = ()
    judged: int = 0  # number of the mention's names


class Columns:
    """`number` columns, for names of at most `depth` tokens, and prompts of at most `length` tokens with the
    name; `waiting` is in order.

    table int32 [columns, width, blocks]: the blocks of every place, in the order of their tokens; those after
    the whole blocks of the prompt, whose tokens are int64 [columns], are private to the place.
    """

    def __init__(
        self, arena: Arena, waiting: dict[Mention, None], number: int, width: int, *, depth: int, length: int
    ) -> None:
        self.arena, self.waiting, self.width = arena, waiting, width
        self.occupants: dict[int, Occupant] = {}
        self.copies: list[tuple[int, int]] = []  # (from, to) of blocks to be copied before the next pass
        self._begun: list[Reading] = []  # beginnings under computation
        self._idle = list(range(number))
        self._private = private_blocks(arena, depth)
        self.table = np.zeros((number, width, arena.blocks(length) + self._private), np.int32)
        self.prompt = np.zeros(number, np.int64)  # tokens

    @property
    def busy(self) -> bool:
        return bool(self.occupants or self._begun or self.waiting)

    @property
    def judging(self) -> bool:
        """Whether names are judged in any column."""
        return any(occupant.judging for occupant in self.occupants.values())

    def growing(self) -> list[int]:
        """The columns whose prompts have been read."""
        return [column for column, occupant in self.occupants.items() if not occupant.reading.left]

    def alike(self, columns: Iterable[int]) -> int:
        """The number of whole blocks that the prompts of all these columns share; 0 if one is a beginning
        itself."""
        occupants = (self.occupants.get(column) for column in columns)
        beginnings = {occupant.beginning if occupant is not None else None for occupant in occupants}
        only = beginnings.pop() if len(beginnings) == 1 else None
        return 0 if only is None else only.tokens // self.arena.size

    def judge(self, column: int) -> bool:
        """Whether there are names to be judged that have not been found; as many as there are beams come
        next. The model computes the root again: one token, the prompt's last."""
        occupant, known = (
            self.occupants[column],
            {candidate.leaf for candidate in self.occupants[column].found},
        )
        left = [leaf for leaf in occupant.mention.judged[occupant.judged :] if leaf not in known]
        occupant.judging = tuple(left[: self.width])
        if not occupant.judging:
            return False
        occupant.judged = occupant.mention.judged.index(occupant.judging[-1]) + 1
        occupant.reading.done -= 1
        occupant.mention.usage.asked += 1
        return True

    def free(self, column: int) -> Occupant:
        """Free a column; its occupant."""
        occupant = self.occupants.pop(column)
        self._idle.append(column)
        self.arena.leave(occupant.reading, occupant.beginning)
        self.arena.give(occupant.blocks)
        if occupant.beginning is not None:
            occupant.beginning.users -= 1
        return occupant

    def drop(self, mention: Mention) -> None:
        """Remove a mention whose caller has left. Its beams die, since they get no more scores."""
        self.waiting.pop(mention, None)
        for column in [c for c, occupant in self.occupants.items() if occupant.mention is mention]:
            self.free(column)
        self.arena.settle(self, waits=False)

    def readings(self, room: int, rows: int) -> Iterator[tuple[int, Reading, int]]:
        """(column, reading, tokens) of the next pass, of at most `room` tokens and `rows` rows in all: first
        those in progress, then those that join."""
        if not room or not rows:
            return
        under_way = [(BEGINNING, reading) for reading in self._begun]
        under_way += [
            (c, occupant.reading) for c, occupant in self.occupants.items() if occupant.reading.left
        ]
        for column, reading in chain(under_way, self._joining()):
            tokens = min(room, reading.left)
            yield column, reading, tokens
            room, rows = room - tokens, rows - 1
            if not room or not rows:
                return

    def read(self, column: int, reading: Reading, tokens: int) -> bool:
        """Record that `tokens` more have been computed. Whether the column's search can begin."""
        reading.done += tokens
        if reading.left:
            return False
        if reading.begun is not None:
            reading.begun.ready = True
            reading.begun.users -= 1
            self._begun.remove(reading)
            return False
        return True

    def _joining(self) -> Iterator[tuple[int, Reading]]:
        for mention in tuple(self.waiting):
            if not self._idle or not self.arena.open_to(self):
                return
            key = mention.beginning.identity.tobytes()
            beginning = self.arena.find(key) if key else None
            if key and beginning is None:
                begun = self.arena.add(key, len(mention.beginning))
                if begun is None:
                    break
                reading = Reading(mention.beginning, np.array(begun.blocks, np.int32), 0, begun=begun)
                mention.usage.asked += len(mention.beginning)
                self._begun.append(reading)
                yield BEGINNING, reading
            elif (beginning is None or beginning.ready) and not self._copyable_soon(mention, beginning):
                column = self._join(mention, beginning)
                if column is None:
                    break
                yield column, self.occupants[column].reading
        else:
            self.arena.settle(self, waits=False)
            return
        self.arena.settle(self, waits=True)

    def _copyable_soon(self, mention: Mention, beginning: Beginning | None) -> bool:
        """Whether tokens that it could copy from another prompt are still being computed."""
        alike = self.arena.copyable(mention.rest, beginning)
        return alike is not None and alike[0].done < alike[1]

    def _join(self, mention: Mention, beginning: Beginning | None) -> int | None:
        """Give the mention a column and blocks; the column, or None if there are too few blocks."""
        size, width, private = self.arena.size, self.width, self._private
        start, end = len(mention.beginning), mention.tokens
        shared, full = start // size, end // size
        if beginning is not None:
            beginning.users += 1  # so that it is not dropped to make room for this mention
        blocks = self.arena.take(full - shared + width * private)
        if blocks is None:
            if beginning is not None:
                beginning.users -= 1
            return None
        column = self._idle.pop()
        table, self.prompt[column] = self.table[column], end
        table[:, :shared] = beginning.blocks[:shared] if beginning is not None else []
        table[:, shared:full] = blocks[: full - shared]
        table[:, full : full + private] = np.reshape(blocks[full - shared :], (width, private))
        reading = Reading(mention.rest, table[0], start)
        self._copy_beginning(reading, beginning)
        self.occupants[column] = Occupant(mention, beginning, blocks, reading)
        self.arena.enter(reading, beginning)
        del self.waiting[mention]
        mention.usage.asked += end
        mention.usage.cached += start + reading.done
        self.arena.settle(self, waits=False)
        return column

    def _copy_beginning(self, reading: Reading, beginning: Beginning | None) -> None:
        """Copy into the prompt's blocks what another prompt has computed of it, or the beginning's partial
        block."""
        size, start = self.arena.size, reading.start
        if (alike := self.arena.copyable(reading.written, beginning)) is not None:
            other, reading.done = alike
            here = slice(start // size, self.arena.blocks(start + reading.done))
            self.copies += zip(other.blocks[here].tolist(), reading.blocks[here].tolist(), strict=True)
        elif beginning is not None and start % size:
            self.copies.append((beginning.blocks[-1], int(reading.blocks[start // size])))

    def fork(self, column: Whole, source: Whole, target: Whole, cached: Whole) -> None:
        """Copy the blocks after the prompt's whole ones, with `cached` tokens of a name, from place to
        place."""
        size = self.arena.size
        first, written = self.prompt[column] // size, self.prompt[column] % size + cached
        for i in range(self._private):
            there = written > i * size
            c, at = column[there], first[there] + i
            self.copies += zip(
                self.table[c, source[there], at].tolist(), self.table[c, target[there], at].tolist(),
                strict=True,
            )  # fmt: skip


def private_blocks(arena: Arena, depth: int) -> int:
    """The private blocks of a place: for at most a block less one token of the prompt, and a name without its
    end token."""
    return arena.blocks(arena.size - 1 + depth - 1)
