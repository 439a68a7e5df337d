"""The estimate of how long newcomers will wait. The clock is the tests' own: no test waits."""

from __future__ import annotations

import random

import pytest

from gemel_ray.serving.desk import Pace


class Clock:
    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def worked(pace: Pace, clock: Clock, rate: float, seconds: float, took: float, inside: int) -> None:
    """Documents are done at `rate`, for so long, each after `took` seconds."""
    for _ in range(round(rate * seconds)):
        clock.at += 1 / rate
        pace.done(took, inside)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace:
    return Pace(long=5.0, now=clock)


def test_a_rush_is_measured(pace: Pace, clock: Clock) -> None:
    worked(pace, clock, rate=4, seconds=20, took=8, inside=40)
    assert pace.wait(40) == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize(("took", "inside"), [(1.0, 40), (30.0, 1)])
def test_without_a_rush_nothing_is_known(pace: Pace, clock: Clock, took: float, inside: int) -> None:
    """A quick answer waited for nobody, and one slow document alone is slow of itself."""
    worked(pace, clock, rate=0.2, seconds=60, took=took, inside=inside)
    assert pace.wait(1000) == 0


@pytest.mark.parametrize(
    ("before", "after", "rate", "within"),
    [
        ((10, 20, 8, 80), (0.1, 3600, 1, 1), 10, 0.05),
        ((4, 20, 8, 40), (20, 6, 2, 40), 20, 0.05),
        ((20, 20, 8, 100), (2, 30, 20, 100), 2, 0.1),
    ],
    ids=["a quiet night does not lower it", "more done raises it at once", "a slower machine is found out"],
)
def test_the_estimate_follows_the_work(
    pace: Pace, clock: Clock, before: tuple[float, ...], after: tuple[float, ...], rate: float, within: float
) -> None:
    for a_second, seconds, took, inside in (before, after):
        worked(pace, clock, rate=a_second, seconds=seconds, took=took, inside=int(inside))
    assert pace.rate == pytest.approx(rate, rel=within)


def test_a_standstill_is_soon_forgotten(pace: Pace, clock: Clock) -> None:
    """An engine that compiles: nothing for a while, then as before."""
    worked(pace, clock, rate=5, seconds=20, took=8, inside=40)
    clock.at += 20
    worked(pace, clock, rate=5, seconds=7, took=25, inside=40)
    assert pace.rate == pytest.approx(5, rel=0.1)


def test_a_rush_that_begins_with_a_standstill_is_measured(pace: Pace, clock: Clock) -> None:
    clock.at += 6
    worked(pace, clock, rate=5, seconds=6, took=7, inside=40)
    assert pace.rate == pytest.approx(5, rel=0.1)


def played(rate: float, asked: float, limit: float) -> tuple[list[float], int, float]:
    """Five minutes of an endpoint that does `rate` documents a second, one after the other, and is asked for
    `asked`: waits of those done after the first minute, number of those refused, documents done a second."""
    clock, draw = Clock(), random.Random(0)
    pace, line, waits = Pace(long=limit / 2, now=clock), list[float](), list[tuple[float, float]]()
    end, arrival, ready, refused = clock.at + 300, clock.at, clock.at, 0
    while clock.at < end:
        if line and ready <= arrival:
            clock.at = ready
            waits.append((clock.at, clock.at - line[0]))
            pace.done(clock.at - line.pop(0), len(line) + 1)
            ready = clock.at + draw.uniform(0.7, 1.3) / rate
            continue
        clock.at = arrival
        arrival += draw.expovariate(asked)
        if pace.wait(len(line)) > limit:
            refused += 1
            continue
        if not line:
            ready = clock.at + draw.uniform(0.7, 1.3) / rate
        line.append(clock.at)
    return [wait for at, wait in waits if at > end - 240], refused, len(waits) / 300


@pytest.mark.parametrize("rate", [0.5, 5, 50])
def test_on_any_machine_a_rush_waits_as_long_and_no_longer(rate: float) -> None:
    waits, refused, done = played(rate, asked=3 * rate, limit=10)
    assert refused > 0
    assert done == pytest.approx(rate, rel=0.05)  # nobody is refused for whom there was time
    assert 8 < sorted(waits)[len(waits) // 2] < 14
    assert max(waits) < 20


@pytest.mark.parametrize("rate", [0.5, 5, 50])
def test_what_can_be_done_is_never_refused(rate: float) -> None:
    _, refused, _ = played(rate, asked=0.6 * rate, limit=10)
    assert refused == 0
