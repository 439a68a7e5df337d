"""The headline figures: accuracy with and without NIL, the target among the candidates, popularity bias.

Each function takes judged mentions and returns figures by name. A difference between two runs is paired:
both are judged on the same mentions, which are resampled together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gemel_ray.evaluation.judged import Judged
from gemel_ray.evaluation.known import Known
from gemel_ray.evaluation.resampling import Figure, Resampling

TOP = (1, 3, 5)


def resampling(judged: Sequence[Judged]) -> Resampling:
    """The resampling of documents with the same text and picture: GEMEL's official form repeats a document
    for each of its mentions, under another id."""
    return Resampling([f"{j.gold['text']}\0{j.gold['picture_id']}" for j in judged])


def headline(judged: Sequence[Judged]) -> dict[str, Figure]:
    """Figures of mentions with a target: the paper's accuracy, and the target's rank. `mrr` is the mean of
    1 / rank, 0 if the target is not a candidate."""
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
    return found | _accuracy_of_ids(judged)


def _accuracy_of_ids(judged: Sequence[Judged]) -> dict[str, Figure]:
    """Accuracy by id, over the mentions whose gold has one: several entities may have the answer's name."""
    identified = [j for j in judged if j.right_id is not None]
    if not identified:
        return {}
    right = np.array([[j.right_id] for j in identified], float)
    return {"accuracy_of_ids": resampling(identified).shares(right, np.ones_like(right))[0]}


def with_nil(judged: Sequence[Judged]) -> dict[str, Figure]:
    """Figures of mentions with a target and of those whose gold is NIL: the share of right answers in all,
    among the links, among the answers NIL, and among the gold NIL. An error does not count as NIL."""
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
    answered mentions. Among wrong answers, the shares that are more, equally and less popular than the right
    entity: without popularity bias, the first and the last are equal."""
    answered = [j for j in judged if j.answer is not None]
    counts = np.array(
        [[known.targets[j.answer or ""], known.targets[j.gold["target"]]] for j in answered], float
    ).reshape(-1, 2)
    wrong = np.array([not j.right for j in answered], float)
    signs = np.sign(counts[:, 0] - counts[:, 1])
    drawn = resampling(answered)
    means = drawn.means(counts, np.ones_like(counts))
    columns = np.stack([signs > 0, signs == 0, signs < 0], axis=1)
    shares = drawn.shares(columns, np.repeat(wrong[:, None], 3, axis=1))
    names = ("predicted_mean", "true_mean", "wrong_more", "wrong_equal", "wrong_less")
    return dict(zip(names, [*means, *shares], strict=True))


def difference(ours: Sequence[Judged], theirs: Sequence[Judged]) -> Figure:
    """Accuracy of ours minus accuracy of theirs, on the same mentions in the same order: paired."""
    gains = np.array([[float(a.right) - b.right] for a, b in zip(ours, theirs, strict=True)]).reshape(-1, 1)
    return resampling(ours).means(gains, np.ones_like(gains))[0]
