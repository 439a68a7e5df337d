"""The pace of a line that is full: between its first results, which came together, and its last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Moment = tuple[float, int]  # seconds, and the mentions that were done then


class Pace(NamedTuple):
    """Mentions a second, from `began` to `ended`."""

    rate: float
    began: float
    ended: float


def steady(told: Sequence[Moment], together: int) -> Pace | None:
    """Of results of which `together` were under way at once: behind the first of them, and, where enough are
    left, before the last, when the line runs empty. None where all were under way together."""
    behind = told[together:]
    if not behind:
        return None
    if len(behind) > 2 * together:
        behind = behind[:-together]
    began, ended = told[together - 1][0], behind[-1][0]
    return Pace(sum(n for _, n in behind) / max(ended - began, 1e-9), began, ended)
