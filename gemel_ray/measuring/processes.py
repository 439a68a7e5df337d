"""A measurement in new processes, so that its memory, also a GPU's, is free when it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_PATIENCE = 600.0  # seconds that the slowest process may start later than the first
_START: list[threading.Barrier] = []  # shared by the processes that measure together; empty in the parent


def in_new_process(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """The result of `function`, called in a new process."""
    return in_new_processes(1, function, *arguments, **named)[0]


def in_new_processes(number: int, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> list[T]:
    """The results of `function` in `number` new processes, in which it may call `wait_for_all`."""
    context = get_context("spawn")
    with ProcessPoolExecutor(number, context, _take, (context.Barrier(number),)) as pool:
        under_way = [pool.submit(function, *arguments, **named) for _ in range(number)]
        return [result.result() for result in under_way]


def wait_for_all() -> bool:
    """Wait until all the processes have called this. True in one of them, for what only one does."""
    return all([barrier.wait(_PATIENCE) == 0 for barrier in _START])


def _take(barrier: threading.Barrier) -> None:
    _START.append(barrier)
