"""The steady pace of a pipeline: without its start, whose first results come together, and without its
end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Moment = tuple[float, int]  # seconds, and the number of mentions that were done then


class Pace(NamedTuple):
    """Mentions per second, from `began` to `ended`."""

    rate: float
    began: float
    ended: float


def steady(results: Sequence[Moment], together: int) -> Pace | None:
    """The pace of results of which `together` were in progress at once: after the first of these, and, if
    enough are left, before the last of them. None if all were in progress together."""
    later = results[together:]
    if not later:
        return None
    if len(later) > 2 * together:
        later = later[:-together]
    began, ended = results[together - 1][0], later[-1][0]
    return Pace(sum(n for _, n in later) / max(ended - began, 1e-9), began, ended)
