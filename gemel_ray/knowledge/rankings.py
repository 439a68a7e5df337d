"""Ranked rows of many queries at once: ties settled, lists joined and fused, whole matrices at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]

TIE: Final = 1e-6  # the scores of equal vectors differ by less, those of others seldom do


class Ranked(NamedTuple):
    """One query a line. Lines are filled up with row -1 of score minus infinity, at their ends once they are
    `levelled`."""

    rows: Rows  # [queries, n]
    scores: Scores  # [queries, n]


def nothing(queries: int, width: int) -> Ranked:
    """Lines without a row."""
    return Ranked(np.full((queries, width), -1, np.int64), np.full((queries, width), -np.inf))


def padded(answers: Sequence[Sequence[tuple[int, float]]]) -> Ranked:
    """Of lists of (row, score)."""
    made = nothing(len(answers), max(map(len, answers), default=0))
    for i, answer in enumerate(answers):
        made.rows[i, : len(answer)] = [row for row, _ in answer]
        made.scores[i, : len(answer)] = [score for _, score in answer]
    return made


def beside(one: Ranked, other: Ranked) -> Ranked:
    """Both lists of each query as one; not in order."""
    return Ranked(np.hstack([one.rows, other.rows]), np.hstack([one.scores, other.scores]))


def below(parts: Sequence[Ranked]) -> Ranked:
    """The queries of all parts, one part after another."""
    made, at = nothing(sum(len(p.rows) for p in parts), max(p.rows.shape[1] for p in parts)), 0
    for part in parts:
        count, width = part.rows.shape
        made.rows[at : at + count, :width], made.scores[at : at + count, :width] = part
        at += count
    return made


def spread(ranked: Ranked, asked: Sequence[int], queries: int) -> Ranked:
    """The lines as those of the queries `asked`, of so many; the others have none."""
    if len(asked) == queries:
        return ranked
    made = nothing(queries, ranked.rows.shape[1])
    made.rows[asked], made.scores[asked] = ranked
    return made


def levelled(ranked: Ranked, limit: int) -> Ranked:
    """In order, the scores of a tie made equal and its rows rising, each line ending with the tie that holds
    place `limit`.

    A gap ends a tie. Rounding would not do: now and then a tie lies across a rounding border, and there the
    last bit of a score, which equal vectors need not share (numpy's do not), would part it.
    """
    falling = np.argsort(-ranked.scores, axis=1)
    rows = np.take_along_axis(ranked.rows, falling, axis=1)
    scores = np.take_along_axis(ranked.scores, falling, axis=1)
    with np.errstate(invalid="ignore"):  # of two that are not there
        opens = np.diff(scores, axis=1, prepend=np.inf) < -TIE
    tie = np.cumsum(opens, axis=1)
    kept = np.isfinite(scores)
    if 0 < limit < scores.shape[1]:
        kept &= tie <= tie[:, limit - 1 : limit]
    first = np.maximum.accumulate(np.where(opens, np.arange(scores.shape[1]), 0), axis=1)
    level = np.where(kept, np.take_along_axis(scores, first, axis=1), -np.inf)
    order = np.lexsort((rows, tie), axis=-1)
    size = int(kept.sum(axis=1).max(initial=0))
    rows = np.where(kept, np.take_along_axis(rows, order, axis=1), -1)
    return Ranked(rows[:, :size], level[:, :size])


def fused(lists: Sequence[tuple[Ranked, float]], queries: int, limit: int, k: int = 60) -> Ranked:
    """Weighted reciprocal rank fusion: of each query, (levelled lines, weight w) gives a row of rank r the
    vote w / (k + r).

    Rows with equal scores share a rank (1, 1, 1, 2, ...), and a row that a list does not hold stands
    behind its last one: a list that is cut, or full of ties ("the company"), must not outvote the others
    by being short. An empty list has no vote. Best first, equal ones by row. Qdrant's own Rrf ranks by
    position and counts an absent row as nothing: of 40 rows with the same mention, the one that was
    inserted first gets 1/60 and the last 1/99, and that chance outvotes whatever the image says.
    """
    base, parts = np.zeros(queries), [(np.empty(0, np.int64),) * 2 + (np.empty(0),)]
    for ranked, weight in lists:
        there = np.isfinite(ranked.scores)
        with np.errstate(invalid="ignore"):
            rank = np.cumsum(np.diff(ranked.scores, axis=1, prepend=np.inf) < 0, axis=1)
        last = np.where(there, rank, 0).max(axis=1, initial=0)
        absent = np.where(last, weight / (k + last + 1), 0.0)
        base += absent
        query, _ = at = np.nonzero(there)
        parts.append((query, ranked.rows[at], weight / (k + rank[at]) - absent[query]))
    query, row, votes = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    width = int(row.max(initial=0)) + 1
    keys, which = np.unique(query * width + row, return_inverse=True)
    query, row = np.divmod(keys, width)
    votes = base[query] + np.bincount(which, votes, len(keys))
    best = np.lexsort((row, -votes.round(12), query))  # the last bits depend on the order of the lists
    query, row, votes = query[best], row[best], votes[best]
    place = np.arange(len(query)) - np.searchsorted(query, query)
    kept = place < limit
    made = nothing(queries, min(limit, int(place.max(initial=-1)) + 1))
    made.rows[query[kept], place[kept]], made.scores[query[kept], place[kept]] = row[kept], votes[kept]
    return made
