"""Columns and blocks of the rounds: who joins when, and that what is given comes back."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemel_ray.engine.columns import BEGINNING, Arena, Columns, Mention
from gemel_ray.engine.work import TokenPrompt, Usage

SIZE, DEPTH, LENGTH = 4, 6, 60
nobody: Any = SimpleNamespace()  # nothing here waits for an outcome


def written(tokens: int, name: int = 0) -> TokenPrompt:
    ids = np.full(tokens, name, np.int64)
    return TokenPrompt(ids, ids)


def mention(beginning: tuple[int, int], rest: int) -> Mention:
    return Mention(written(*beginning), written(rest), nobody, Usage())


def made(arena: Arena, number: int = 3, width: int = 2) -> Columns:
    return Columns(arena, {}, number, width, depth=DEPTH, length=LENGTH)


def read(columns: Columns, room: int) -> int:
    """A pass: tokens that are read in it."""
    parts = list(columns.readings(room, 50))
    for column, reading, tokens in parts:
        assert 0 < tokens <= reading.left
        columns.read(column, reading, tokens)
    columns.copies.clear()
    return sum(tokens for _, _, tokens in parts)


def in_hand(columns: list[Columns], arena: Arena) -> list[int]:
    """Every block, by whoever has it."""
    blocks = list(arena._free)
    for beginning in arena._beginnings.values():
        blocks += beginning.blocks
    for each in columns:
        for guest in each.occupants.values():
            blocks += guest.blocks
    return sorted(blocks)


beginnings = st.sampled_from([(0, 0), (5, 1), (8, 2), (17, 3), (17, 4)])


@settings(deadline=None)
@given(
    wishes=st.lists(st.tuples(beginnings, st.integers(1, 20), st.integers(0, 1)), min_size=1, max_size=20),
    room=st.integers(1, 30), seed=st.integers(0, 99),
)  # fmt: skip
def test_everybody_joins_and_every_block_comes_back(
    wishes: list[tuple[tuple[int, int], int, int]], room: int, seed: int
) -> None:
    """Two rounds of different width on one arena in which hardly one of the wide ones has room."""
    arena = Arena(range(100, 130), SIZE)
    both, dice = [made(arena), made(arena, number=2, width=6)], random.Random(seed)
    for beginning, rest, wide in wishes:
        both[wide].waiting[mention(beginning, rest)] = None
    joined = 0
    for _ in range(2000):
        if not any(columns.busy for columns in both):
            break
        for columns in both:
            before = len(columns.waiting)
            assert read(columns, room) <= room
            joined += before - len(columns.waiting)
            assert in_hand(both, arena) == list(range(100, 130))
            for column in columns.growing():
                if dice.random() < 0.4:
                    columns.free(column)
    assert joined == len(wishes)
    arena.forget()
    assert len(arena._free) == 30


def test_what_prompts_begin_with_is_computed_once() -> None:
    arena = Arena(range(100), SIZE)
    columns = made(arena)
    mentions = [mention((10, 1), 3) for _ in range(3)]
    columns.waiting.update(dict.fromkeys(mentions))
    assert read(columns, 100) == 10  # nobody joins before it is there
    assert read(columns, 100) == 9
    table = columns.table[:, 0, :4].tolist()
    assert [row[:2] for row in table] == [table[0][:2]] * 3
    assert len({block for row in table for block in row[2:]}) == 6
    assert [(m.usage.asked, m.usage.cached) for m in mentions] == [(23, 10), (13, 10), (13, 10)]


def of_one_document(*questions: int) -> list[Mention]:
    """20 tokens of text behind a beginning of 10, and of each question 3 more."""
    text = np.arange(20)
    made = [
        TokenPrompt(ids, ids) for ids in (np.append(text, np.full(3, 90 + number)) for number in questions)
    ]
    return [Mention(written(10, 1), own, nobody, Usage()) for own in made]


def test_mentions_of_one_document_compute_its_text_once() -> None:
    """The first one computes it; the others wait for that, and copy the blocks in which it stands."""
    columns = made(Arena(range(100), SIZE), number=4)
    mentions = of_one_document(1, 2, 2)
    columns.waiting.update(dict.fromkeys(mentions))
    assert read(columns, 100) == 10
    assert read(columns, 15) == 15  # not the whole text yet
    assert read(columns, 100) == 8
    parts = list(columns.readings(100, 50))
    assert [(reading.done, tokens) for _, reading, tokens in parts] == [(20, 3), (20, 3)]
    first, second, third = (columns.occupants[column].reading.blocks for column in (3, 2, 1))
    copied = [(int(first[i]), int(other[i])) for other in (second, third) for i in range(2, 8)]
    assert columns.copies == copied  # tokens 8 to 31, the beginning's last two among them
    assert [m.usage.cached for m in mentions] == [10, 30, 30]


def test_nobody_copies_from_who_has_left() -> None:
    columns = made(Arena(range(100), SIZE))
    first, second = of_one_document(1, 2)
    columns.waiting[first] = None
    read(columns, 100)
    columns.waiting[second] = None
    read(columns, 5)  # of the first one's text
    columns.drop(first)
    assert read(columns, 100) == 23


def test_the_last_block_of_a_beginning_is_copied_for_each_who_stands_behind_it() -> None:
    columns = made(Arena(range(100), SIZE))
    columns.waiting.update(dict.fromkeys([mention((10, 1), 3), mention((8, 2), 3)]))
    list(columns.readings(100, 50))
    for reading in list(columns._begun):
        columns.read(BEGINNING, reading, reading.left)
    last = columns.arena.find(written(10, 1).identity.tobytes())
    assert last is not None
    list(columns.readings(100, 50))
    column = next(c for c, guest in columns.occupants.items() if guest.beginning is last)
    assert columns.copies == [(last.blocks[2], columns.table[column, 0, 2])]


def test_a_long_prompt_is_read_in_parts_and_the_next_one_beside_it() -> None:
    columns = made(Arena(range(100), SIZE))
    columns.waiting.update(dict.fromkeys([mention((0, 0), 25), mention((0, 0), 4)]))
    assert [read(columns, 10) for _ in range(3)] == [10, 10, 9]
    assert len(columns.growing()) == 2


def test_a_fork_copies_what_the_place_holds_and_no_more() -> None:
    """The prompt's 6 tokens end in its second block; 3 tokens of a name reach into the third."""
    columns = made(Arena(range(100), SIZE))
    columns.waiting[mention((0, 0), 6)] = None
    read(columns, 100)
    (column,) = columns.growing()
    table = columns.table[column]
    for cached, blocks in ((0, [1]), (2, [1]), (3, [1, 2])):
        one = np.array([column]), np.array([0]), np.array([1]), np.array([cached])
        columns.fork(*one)
        assert columns.copies == [(table[0, block], table[1, block]) for block in blocks]
        columns.copies.clear()


def test_who_leaves_is_gone_wherever_it_was() -> None:
    arena = Arena(range(10), SIZE)
    columns = made(arena, number=1)
    mentions = [mention((5, 1), 9) for _ in range(3)]
    columns.waiting.update(dict.fromkeys(mentions))
    read(columns, 100)
    read(columns, 3)  # the first one's prompt is half read
    columns.drop(mentions[0])
    columns.drop(mentions[2])
    assert list(columns.waiting) == [mentions[1]]
    read(columns, 100)
    assert [guest.mention for guest in columns.occupants.values()] == [mentions[1]]
    columns.drop(mentions[1])
    assert not columns.busy
    arena.forget()
    assert len(arena._free) == 10


def test_pictures_are_cut_where_a_prompt_is() -> None:
    vectors = torch.arange(8.0).reshape(4, 2)
    whole = TokenPrompt(np.arange(10), np.arange(10), ((3, vectors),))
    cut = [whole.part(start, end) for start, end in ((0, 3), (0, 5), (5, 10), (7, 10))]
    assert [(len(ids), [(place, len(v)) for place, v in over]) for ids, over in cut] == [
        (3, []), (5, [(3, 2)]), (5, [(0, 2)]), (3, []),
    ]  # fmt: skip
    assert cut[2][1][0][1].tolist() == vectors[2:].tolist()
