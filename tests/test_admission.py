"""Room in the cache: who is let in when, and that what is given comes back."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemel_ray.engine.admission import Room

Wish = tuple[int, tuple[int, ...], tuple[int, ...]]  # tokens, demonstrations, beginning


async def visits(room: Room, wishes: list[Wish], seed: int = 0) -> tuple[list[int], int]:
    """Order in which the wishes were let in, and the most tokens inside at once."""
    order: list[int] = []
    inside: Counter[int] = Counter()
    most = 0
    dice = random.Random(seed)

    async def visit(number: int) -> None:
        nonlocal most
        tokens, shots, beginning = wishes[number]
        async with room.taken(tokens, shots, beginning):
            order.append(number)
            inside[number] = tokens
            begun = {wishes[n][2] for n in inside}
            most = max(most, sum(inside.values()) + sum(map(len, begun)))
            for _ in range(dice.randrange(3)):
                await asyncio.sleep(0)
            del inside[number]

    async with asyncio.TaskGroup() as group:
        for number in range(len(wishes)):
            group.create_task(visit(number))
    return order, most


BEGINNINGS = [(), (1, 2, 3), (1, 2, 3, 4), (9,) * 20]
WISHES = st.lists(
    st.tuples(
        st.integers(1, 40), st.lists(st.integers(0, 3), max_size=3).map(tuple), st.sampled_from(BEGINNINGS)
    )
)


@settings(deadline=None)
@given(wishes=WISHES, seed=st.integers(0, 99))
def test_everybody_gets_in_no_more_at_once_than_fit_and_all_room_is_given_back(
    wishes: list[Wish], seed: int
) -> None:
    room = Room(60)
    order, most = asyncio.run(visits(room, wishes, seed))
    assert sorted(order) == list(range(len(wishes)))
    assert most <= 60
    assert room.free == 60


def test_who_is_larger_than_the_cache_is_let_in_alone() -> None:
    order, _ = asyncio.run(visits(Room(10), [(5, (), ()), (100, (), ()), (5, (), ())]))
    assert sorted(order) == [0, 1, 2]


def test_equal_and_nested_lists_come_together() -> None:
    lists = [(7, 8), (1, 2), (7, 9), (1, 3), (7, 8), (1, 2)]
    order, _ = asyncio.run(visits(Room(10), [(10, (0,), ()), *((10, shots, ()) for shots in lists)]))
    assert [lists[i - 1] for i in order[1:]] == sorted(lists)


def test_who_comes_again_and_again_does_not_keep_others_waiting() -> None:
    """The lift goes on: a list asked for without end is not served twice before one that waits."""

    async def run() -> list[str]:
        room, log = Room(1), list[str]()

        async def popular(left: int) -> None:
            async with room.taken(1, (1,)):
                log.append("popular")
                again = asyncio.create_task(popular(left - 1)) if left else None
                await asyncio.sleep(0)
            if again:
                await again

        async def other() -> None:
            async with room.taken(1, (2,)):
                log.append("other")

        first = asyncio.create_task(popular(20))
        await asyncio.sleep(0)
        await asyncio.gather(first, other())
        return log

    assert asyncio.run(run()).index("other") <= 2


def test_a_beginning_takes_its_room_once() -> None:
    begun = tuple(range(50))

    async def run() -> None:
        room = Room(60)
        async with room.taken(5, (), begun), room.taken(5, (), begun):
            assert room.free == 0
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01), room.taken(1, (), begun):
                    pass
        assert room.free == 60

    asyncio.run(run())
