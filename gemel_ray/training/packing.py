"""Prompts packed into one row for the model, with their common beginning only once.

Demonstrations are most of a prompt, and with a shared set (`retrieve.shared_sets`) all prompts begin with
the same ones. A row is a trunk, which is the beginning that most prompts share, and then one tail for each
example: the rest of its prompt from the place where it leaves the trunk. attention.py lets a tail attend to
the trunk up to there and to itself, so losses and gradients are those of whole prompts. Knows nothing of
models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from gemel_ray.training.examples import Example

Ids = npt.NDArray[np.int64]
_PADDED = 1.15  # at most: the length of a group's longest tail over that of its shortest


def positions(prompt: Sequence[int], prefix: int) -> Ids:
    """The prompt with `prefix` places (-1) for each picture."""
    ids = np.maximum(np.asarray(prompt, np.int64), -1)
    return np.repeat(ids, np.where(ids < 0, prefix, 1))


@dataclass(frozen=True)
class Tail:
    """The rest of example `member` after the trunk's first `cut` positions, without the target's last token,
    which is only predicted."""

    member: int
    cut: int
    ids: Ids
    features: npt.NDArray[np.float32]  # of the pictures in it


@dataclass(frozen=True)
class Family:
    """Examples that share most of a beginning."""

    trunk: Ids
    pictures: npt.NDArray[np.float32]  # features of the trunk's pictures
    tails: list[Tail]  # sorted by cut, then by length


@dataclass(frozen=True)
class Group:
    """Tails that leave the trunk at the same place, each padded at the end to `longest`."""

    cut: int
    rows: int
    longest: int


@dataclass(frozen=True)
class Pack:
    """One row: the trunk's positions, then those of all groups."""

    ids: Ids  # [positions]; -1: a vector of a visual prefix
    places: Ids  # [positions], the place of each position in its prompt
    features: list[npt.NDArray[np.float32]]  # of the pictures, in order
    trunk: int  # length
    groups: tuple[Group, ...]
    members: list[int]  # the examples, in order
    ends: list[int]  # the end of each example's tail


def packs(examples: Sequence[Example], prefix: int, tokens: int) -> Iterator[Pack]:
    """All examples, in rows of at most `tokens` positions; a longer example has a row with its trunk
    alone."""
    for family in families(examples, prefix):
        yield from rows_of(family, tokens)


def rows_of(family: Family, tokens: int, *, with_trunk: bool = True) -> Iterator[Pack]:
    """The rows of one family; without the trunk, if its keys and values are computed already."""
    part = family if with_trunk else replace(family, trunk=family.trunk[:0], pictures=family.pictures[:0])
    for tails in _parts(family.tails, tokens - len(family.trunk)):
        yield _pack(part, tails)


def families(examples: Sequence[Example], prefix: int) -> Iterator[Family]:
    """All examples, grouped by common beginnings."""
    left = list(range(len(examples)))
    keys = [_keys(e) for e in examples]
    while left:
        longest, length = _trunk([keys[i] for i in left])
        first = examples[left[longest]]
        shared = {i: _common(keys[left[longest]][:length], keys[i]) for i in left}
        tails = [_tail(i, examples[i], shared[i], prefix) for i in left if shared[i] * 2 >= length]
        left = [i for i in left if shared[i] * 2 < length]
        pictures = first.features[: _pictures(first, length)]
        yield Family(positions(first.prompt[:length], prefix), pictures, _sorted(tails))


def unshared(examples: Sequence[Example], prefix: int) -> Iterator[Family]:
    """All examples in one family with an empty trunk."""
    tails = [_tail(i, e, 0, prefix) for i, e in enumerate(examples)]
    yield Family(np.zeros(0, np.int64), np.zeros((0, 0), np.float32), _sorted(tails))


def _sorted(tails: list[Tail]) -> list[Tail]:
    return sorted(tails, key=lambda t: (t.cut, len(t.ids)))


def _keys(example: Example) -> list[int | bytes]:
    """A prompt's numbers except the last, after which its target begins. A picture is compared by its
    features, since mentions of one document share it."""
    pictures = iter(example.features)
    return [number if number >= 0 else next(pictures).tobytes() for number in example.prompt[:-1]]


def _trunk(prompts: Sequence[list[int | bytes]]) -> tuple[int, int]:
    """The longest beginning found by following the majority at each place, while at least two prompts agree:
    the index of such a prompt, and the length of the beginning."""
    following, length = list(range(len(prompts))), 0
    while True:
        longer = [i for i in following if length < len(prompts[i])]
        majority = Counter(prompts[i][length] for i in longer).most_common(1)
        if not majority or majority[0][1] < 2:
            return following[0], length
        following = [i for i in longer if prompts[i][length] == majority[0][0]]
        length += 1


def _common(one: Sequence[int | bytes], other: Sequence[int | bytes]) -> int:
    """The length of the common beginning."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _pictures(example: Example, length: int) -> int:
    return sum(number < 0 for number in example.prompt[:length])


def _tail(member: int, example: Example, shared: int, prefix: int) -> Tail:
    cut = len(positions(example.prompt[:shared], prefix))
    ids = positions([*example.prompt[shared:], *example.target[:-1]], prefix)
    return Tail(member, cut, ids, example.features[_pictures(example, shared) :])


def _parts(tails: Sequence[Tail], tokens: int) -> Iterator[list[Tail]]:
    part: list[Tail] = []
    size = 0.0
    for tail in tails:
        padded = len(tail.ids) * _PADDED  # at most
        if part and size + padded > tokens:
            yield part
            part, size = [], 0.0
        part.append(tail)
        size += padded
    yield part


def _pack(family: Family, tails: Sequence[Tail]) -> Pack:
    """The row of some of a family's tails."""
    trunk = family.trunk
    ids, places = [trunk], [np.arange(len(trunk))]
    groups: list[Group] = []
    ends: list[int] = []
    at = len(trunk)
    for part in _of_similar_length(tails):
        longest = len(part[-1].ids)
        groups.append(Group(part[0].cut, len(part), longest))
        for tail in part:
            ids.append(np.pad(tail.ids, (0, longest - len(tail.ids))))
            places.append(tail.cut + np.arange(longest))
            ends.append(at + len(tail.ids))
            at += longest
    return Pack(
        np.concatenate(ids),
        np.concatenate(places),
        [family.pictures, *(t.features for t in tails)],
        len(trunk),
        tuple(groups),
        [t.member for t in tails],
        ends,
    )


def _of_similar_length(tails: Sequence[Tail]) -> Iterator[list[Tail]]:
    """Parts of tails with one cut and similar lengths."""
    part: list[Tail] = []
    for tail in tails:
        if part and (tail.cut != part[0].cut or len(tail.ids) > _PADDED * len(part[0].ids)):
            yield part
            part = []
        part.append(tail)
    yield part
