"""Who is in which column of the rounds, who joins next, and in which blocks of the cache they stand.

All of it is bookkeeping on the host, and knows nothing of vLLM. The Arena has the blocks of the key-value
cache that belong to the rounds. A mention's blocks, in order:

    beginning, beginning, ..., own, own, ... | private to each of its places

The private ones begin with the prompt's last, partial block. Beginnings are kept by use: one that no prompt
stands behind is dropped when its blocks are wanted, the one longest unused first. Mentions of one document
have its text in common behind that: while one of them is searched, the next ones copy what it has computed.

Those that wait join in their order, but for those whose beginning, or document's text, is still being
computed. Where blocks are short, whoever was refused first is let in first, whatever rounds it belongs to: a
wide search among narrow ones does not starve.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt

from gemel_ray.engine.work import Candidate, Outcome, Usage, Written

_WORTH_COPYING = 16  # tokens: two copied blocks cost less, and a mention that waits for them a pass
Key = tuple["Beginning | None", bytes]
BEGINNING = -1  # in the place of a column
Whole = npt.NDArray[np.int64]


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


@dataclass(frozen=True, slots=True, eq=False)
class Mention:
    """A prompt to be searched: its `own` tokens, behind a `beginning` that others may have, too, or empty.
    Names that are to be `judged` even if the search does not find them: their leaves."""

    beginning: Written
    own: Written
    outcome: Outcome[list[Candidate]]
    usage: Usage
    judged: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return len(self.beginning) + len(self.own)


@dataclass(slots=True, eq=False)
class Guest:
    """Who is in a column, its prompt, and its blocks but the beginning's; what was found, and which names are
    judged at present: none while it is searched."""

    mention: Mention
    beginning: Beginning | None
    blocks: list[int]
    reading: Reading
    found: list[Candidate] = field(default_factory=list)
    judging: tuple[int, ...] = ()
    judged: int = 0  # of the mention's names


class Columns:
    """`number` columns, for names of at most `depth` tokens behind prompts of `length` together with them;
    `waiting` is in order.

    table int32 [columns, width, blocks]: those of every place, in the order of their tokens; those behind the
    whole blocks of the prompt, int64 [columns] of tokens, are the place's own.
    """

    def __init__(
        self, arena: Arena, waiting: dict[Mention, None], number: int, width: int, *, depth: int, length: int
    ) -> None:
        self.arena, self.waiting, self.width = arena, waiting, width
        self.guests: dict[int, Guest] = {}
        self.copies: list[tuple[int, int]] = []  # of blocks, from and to, before the next pass
        self._begun: list[Reading] = []  # beginnings under computation
        self._idle = list(range(number))
        self._private = private_blocks(arena, depth)
        self.table = np.zeros((number, width, arena.blocks(length) + self._private), np.int32)
        self.prompt = np.zeros(number, np.int64)  # tokens

    @property
    def busy(self) -> bool:
        return bool(self.guests or self._begun or self.waiting)

    @property
    def judging(self) -> bool:
        """Whether names are judged in any column."""
        return any(guest.judging for guest in self.guests.values())

    def growing(self) -> list[int]:
        """The columns whose prompts have been read."""
        return [column for column, guest in self.guests.items() if not guest.reading.left]

    def alike(self, columns: Iterable[int]) -> int:
        """Whole blocks that all these columns' prompts begin with; of a beginning's own column none."""
        guests = (self.guests.get(column) for column in columns)
        beginnings = {guest.beginning if guest is not None else None for guest in guests}
        only = beginnings.pop() if len(beginnings) == 1 else None
        return 0 if only is None else only.tokens // self.arena.size

    def judge(self, column: int) -> bool:
        """Whether names are left to be judged that have not been found: as many as there are beams come next.
        The model is asked about the root again, which is a token: the prompt's last."""
        guest, known = self.guests[column], {candidate.leaf for candidate in self.guests[column].found}
        left = [leaf for leaf in guest.mention.judged[guest.judged :] if leaf not in known]
        guest.judging = tuple(left[: self.width])
        if not guest.judging:
            return False
        guest.judged = guest.mention.judged.index(guest.judging[-1]) + 1
        guest.reading.done -= 1
        guest.mention.usage.asked += 1
        return True

    def free(self, column: int) -> Guest:
        """Let the guest go."""
        guest = self.guests.pop(column)
        self._idle.append(column)
        self.arena.leave(guest.reading, guest.beginning)
        self.arena.give(guest.blocks)
        if guest.beginning is not None:
            guest.beginning.users -= 1
        return guest

    def drop(self, mention: Mention) -> None:
        """Its caller has left. Beams that are no longer asked about die by themselves."""
        self.waiting.pop(mention, None)
        for column in [c for c, guest in self.guests.items() if guest.mention is mention]:
            self.free(column)
        self.arena.settle(self, waits=False)

    def readings(self, room: int, rows: int) -> Iterator[tuple[int, Reading, int]]:
        """(column, what is read there, so many tokens of it), `room` tokens and so many rows in all: those
        under way, then those who join."""
        if not room or not rows:
            return
        under_way = [(BEGINNING, reading) for reading in self._begun]
        under_way += [(c, guest.reading) for c, guest in self.guests.items() if guest.reading.left]
        for column, reading in chain(under_way, self._joining()):
            tokens = min(room, reading.left)
            yield column, reading, tokens
            room, rows = room - tokens, rows - 1
            if not room or not rows:
                return

    def read(self, column: int, reading: Reading, tokens: int) -> bool:
        """So many tokens more have been computed. Whether the column can begin."""
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
            elif (beginning is None or beginning.ready) and not self._soon(mention, beginning):
                column = self._join(mention, beginning)
                if column is None:
                    break
                yield column, self.guests[column].reading
        else:
            self.arena.settle(self, waits=False)
            return
        self.arena.settle(self, waits=True)

    def _soon(self, mention: Mention, beginning: Beginning | None) -> bool:
        """Whether what it could copy of another's prompt is still being computed."""
        alike = self.arena.copyable(mention.own, beginning)
        return alike is not None and alike[0].done < alike[1]

    def _join(self, mention: Mention, beginning: Beginning | None) -> int | None:
        """A column and blocks for the mention, or None while there are not enough."""
        size, width, private = self.arena.size, self.width, self._private
        start, end = len(mention.beginning), mention.tokens
        shared, full = start // size, end // size
        if beginning is not None:
            beginning.users += 1  # not to be dropped for what stands behind it
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
        reading = Reading(mention.own, table[0], start)
        self._copy_beginning(reading, beginning)
        self.guests[column] = Guest(mention, beginning, blocks, reading)
        self.arena.enter(reading, beginning)
        del self.waiting[mention]
        mention.usage.asked += end
        mention.usage.cached += start + reading.done
        self.arena.settle(self, waits=False)
        return column

    def _copy_beginning(self, reading: Reading, beginning: Beginning | None) -> None:
        """Into the prompt's own blocks: what another has computed of it, or the beginning's partial block."""
        size, start = self.arena.size, reading.start
        if (alike := self.arena.copyable(reading.written, beginning)) is not None:
            other, reading.done = alike
            here = slice(start // size, self.arena.blocks(start + reading.done))
            self.copies += zip(other.blocks[here].tolist(), reading.blocks[here].tolist(), strict=True)
        elif beginning is not None and start % size:
            self.copies.append((beginning.blocks[-1], int(reading.blocks[start // size])))

    def fork(self, column: Whole, source: Whole, target: Whole, cached: Whole) -> None:
        """From place to place, what stands behind the prompt's whole blocks, `cached` tokens of a name."""
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
    """Of a place: at most a block less one token of the prompt, and a name without its end."""
    return arena.blocks(arena.size - 1 + depth - 1)
