"""A measurement in processes of its own: what it took of memory, a GPU's included, is free when it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_PATIENCE = 600.0  # seconds that the slowest process may start behind the first
_START: list[threading.Barrier] = []  # of the processes that measure together; empty in the parent


def apart(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """What `function` returns, called in a new process."""
    return together(1, function, *arguments, **named)[0]


def together(number: int, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> list[T]:
    """What `function` returns in `number` new processes, which `meet` where it says so."""
    context = get_context("spawn")
    with ProcessPoolExecutor(number, context, _take, (context.Barrier(number),)) as pool:
        under_way = [pool.submit(function, *arguments, **named) for _ in range(number)]
        return [result.result() for result in under_way]


def meet() -> None:
    """Go on when all the processes are here."""
    for barrier in _START:
        barrier.wait(_PATIENCE)


def _take(barrier: threading.Barrier) -> None:
    _START.append(barrier)
