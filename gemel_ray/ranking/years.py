"""The years of a text against those of a description: who was dead by then is not the one in the picture."""

from __future__ import annotations

import re
from collections.abc import Sequence

_YEAR = re.compile(r"(?<!\d)(?:1\d{3}|20[0-2]\d)(?!\d)")
_GROWN, _PRIME, _SPAN = 12, 40, 50.0  # of a life, in years; what others last is about as long
_LATE = 2  # years after the end: the dead are still spoken of
UNKNOWN = (0.0, 0.0, 0.0, 0.0)


def years(text: str) -> list[int]:
    """Those of 1000 to 2029 that are written in it, in their order."""
    return [int(year) for year in _YEAR.findall(text)]


def compared(text: Sequence[int], about: Sequence[int]) -> tuple[float, float, float, float]:
    """Whether both have years; whether the text's earliest is after the beginning, which is a description's
    first year, and within what begins there and ends with its second; and how far it is from the middle."""
    if not text or not about:
        return UNKNOWN
    year, began, ended = min(text), about[0], about[1] if len(about) > 1 else None
    within = year >= began + _GROWN and (ended is None or year <= ended + _LATE)
    return 1.0, float(year >= began), float(within), min(abs(year - began - _PRIME) / _SPAN, 3.0)
