"""The headline figures: accuracy with and without NIL, the target among the candidates, popularity bias.

Each function takes judged mentions and gives figures by name. A difference between two runs is paired:
both are judged on the same mentions, drawn together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gemel_ray.evaluation.judged import Judged
from gemel_ray.evaluation.known import Known
from gemel_ray.evaluation.resampling import Figure, Resampling

TOP = (1, 3, 5)


def resampling(judged: Sequence[Judged]) -> Resampling:
    """By text and picture: the official form repeats a document for each of its mentions, under another
    id."""
    return Resampling([f"{j.gold['text']}\0{j.gold['scene']}" for j in judged])


def headline(judged: Sequence[Judged]) -> dict[str, Figure]:
    """Of mentions with a target: what the paper counts, and where the target stands. `mrr` is the mean of
    1 / rank, 0 where the target is no candidate."""
    ranks = [j.rank for j in judged]
    shares = {
        "accuracy": [j.right for j in judged],
        **{f"top_{k}": [rank is not None and rank <= k for rank in ranks] for k in TOP},
        "among_candidates": [rank is not None for rank in ranks],
        "errors": [j.status == "error" for j in judged],
        "nils": [j.status == "nil" for j in judged],
        "missing": [j.status == "missing" for j in judged],
    }
    drawn = resampling(judged)
    columns = np.array(list(shares.values()), float).T
    found = dict(zip(shares, drawn.shares(columns, np.ones_like(columns)), strict=True))
    reciprocal = np.array([[1 / rank if rank else 0.0] for rank in ranks])
    found["mrr"] = drawn.means(reciprocal, np.ones_like(reciprocal))[0]
    return found | _of_ids(judged)


def _of_ids(judged: Sequence[Judged]) -> dict[str, Figure]:
    """Accuracy by id, of the mentions whose gold tells one: several entities may bear the answer's name."""
    told = [j for j in judged if j.right_id is not None]
    if not told:
        return {}
    right = np.array([[j.right_id] for j in told], float)
    return {"accuracy_of_ids": resampling(told).shares(right, np.ones_like(right))[0]}


def with_nil(judged: Sequence[Judged]) -> dict[str, Figure]:
    """Of mentions with a target and of those whose gold is NIL, which are answered rightly: of the answers
    that name an entity, of the answers nil, and of the gold NIL. An error is no answer nil."""
    linked = np.array([j.status == "linked" for j in judged], float)
    answered = np.array([j.status == "nil" for j in judged], float)
    gold = np.array([j.nil for j in judged], float)
    right = np.array([j.right for j in judged], float)
    columns = np.stack([right, right * linked, answered * gold, answered * gold], axis=1)
    among = np.stack([np.ones_like(right), linked, answered, gold], axis=1)
    names = ("accuracy_with_nil", "link_precision", "nil_precision", "nil_recall")
    return dict(zip(names, resampling(judged).shares(columns, among), strict=True))


def popularity(judged: Sequence[Judged], known: Known) -> dict[str, Figure]:
    """How often the answers, and how often the right entities, were targets in training: means over the
    mentions that were answered. Of wrong answers, the shares that are more, as and less popular than the
    right entity: a linker without popularity bias has as many of more as of less."""
    answered = [j for j in judged if j.answer is not None]
    counts = np.array(
        [[known.targets[j.answer or ""], known.targets[j.gold["target"]]] for j in answered], float
    ).reshape(-1, 2)
    wrong = np.array([not j.right for j in answered], float)
    apart = np.sign(counts[:, 0] - counts[:, 1])
    drawn = resampling(answered)
    means = drawn.means(counts, np.ones_like(counts))
    columns = np.stack([apart > 0, apart == 0, apart < 0], axis=1)
    shares = drawn.shares(columns, np.repeat(wrong[:, None], 3, axis=1))
    names = ("predicted_mean", "true_mean", "wrong_more", "wrong_equal", "wrong_less")
    return dict(zip(names, [*means, *shares], strict=True))


def difference(ours: Sequence[Judged], theirs: Sequence[Judged]) -> Figure:
    """Accuracy of ours minus accuracy of theirs, on the same mentions in the same order: paired."""
    apart = np.array([[float(a.right) - b.right] for a, b in zip(ours, theirs, strict=True)]).reshape(-1, 1)
    return resampling(ours).means(apart, np.ones_like(apart))[0]
