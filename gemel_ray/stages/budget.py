"""A prompt within the tokens that the language model takes: which examples stand in it, and what of a text.

The farthest examples are dropped first. A text is cut only where it does not fit by itself, around its
mention. Knows nothing of pictures but how many tokens each takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_KEPT_FREE = 4  # a quarter of the room is kept for the question, so that prompts still begin alike


def kept(sizes: Sequence[int], shared: int, question: int, room: int) -> list[int]:
    """Which examples of these sizes, the nearest last, stand before a question of so many tokens: their
    places, in order. The first `shared` of them are chosen without regard to the others, so that all prompts
    with that set begin alike."""
    if sum(sizes) + question <= room:
        return list(range(len(sizes)))
    left = room - max(question, room // _KEPT_FREE)
    common = _nearest(sizes, range(shared), left * shared // max(1, len(sizes)))
    left -= sum(sizes[place] for place in common)
    return common + _nearest(sizes, range(shared, len(sizes)), left)


def _nearest(sizes: Sequence[int], places: range, room: int) -> list[int]:
    found: list[int] = []
    for place in reversed(places):
        if sizes[place] <= room:
            found.append(place)
            room -= sizes[place]
    return found[::-1]


def cut(
    tokenizer: Tokenizer, text: str, at: tuple[int, int], room: int, piece: Callable[[str], str]
) -> str | None:
    """What of the text, around the characters `at`, can stand in `piece` with at most `room` tokens; None:
    not even the piece without a text."""

    def tokens(part: str) -> int:
        return len(tokenizer.encode(piece(part), add_special_tokens=False))

    wide = room - tokens("")
    if wide < 0:
        return None
    places: list[tuple[int, int]] = tokenizer.encode(text, add_special_tokens=False).offsets
    first = next((i for i, (_, end) in enumerate(places) if end > at[0]), 0)
    last = next((i for i, (start, _) in enumerate(places) if start >= at[1]), len(places))
    while wide > 0:
        begin, end = _window(first, last, wide, len(places))
        part = text[places[begin][0] : places[end - 1][1]].strip()
        over = tokens(part) - room
        if over <= 0:
            return part
        wide -= over
    return ""


def _window(first: int, last: int, wide: int, count: int) -> tuple[int, int]:
    """`wide` of `count` tokens, those from `first` to `last` in their middle as far as the ends allow."""
    before = max(0, wide - (last - first)) // 2
    begin = max(0, min(first - before, count - wide))
    return begin, min(count, begin + wide)
