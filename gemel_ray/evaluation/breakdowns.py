"""Accuracy by kinds of mentions: data set, type, ambiguity, popularity, seen or not.

A breakdown gives each mention a label, or none; its table has the accuracy of each label, in order. A
breakdown without labels is left out.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from gemel_ray.evaluation.figures import resampling
from gemel_ray.evaluation.judged import Judged
from gemel_ray.evaluation.known import Known
from gemel_ray.evaluation.resampling import Figure

Label = Callable[[Judged], str | None]
MOST = 30  # labels of one breakdown; rarer ones are shown together
REST = "all others"
_AMBIGUITY = ("0", "1", "2", "3+")
_TIMES = ("never", "once", "2-5", "more")
_QUARTERS = ("lowest", "second", "third", "highest", "not given")
_NAMES = ("it is", "it is not")
_SEEN = ("seen", "unseen")
_NOVELTY = ("target known for the mention", "mention known, target new for it", "mention not known")
_DESCRIBED = ("described", "not described")


def breakdowns(judged: Sequence[Judged], known: Known) -> dict[str, dict[str, Figure]]:
    """The accuracy of each label of each breakdown, in the order in which they are shown."""
    labels = {name: [label(j) for j in judged] for name, label in _labels(known).items()}
    shown = {name: _shortened(found) for name, found in labels.items()}
    pairs = [(name, label) for name, found in shown.items() for label in _ordered(name, found)]
    among = np.array([[found == label for found in shown[name]] for name, label in pairs], float)
    among = among.reshape(len(pairs), len(judged)).T
    right = np.array([j.right for j in judged], float)[:, None]
    figures = resampling(judged).shares(np.broadcast_to(right, among.shape), among)
    tables: dict[str, dict[str, Figure]] = {}
    for (name, label), figure in zip(pairs, figures, strict=True):
        tables.setdefault(name, {})[label] = figure
    return tables


def _labels(known: Known) -> dict[str, Label]:
    found: dict[str, Label] = {
        "dataset": lambda j: j.gold["dataset"],
        "type": lambda j: j.gold.get("type"),
    }
    if known.targets:
        found |= {
            "ambiguity": lambda j: _AMBIGUITY[min(3, len(known.targets_of.get(j.gold["mention"], ())))],
            "popularity": lambda j: times(known.targets[j.gold["target"]]),
            "seen": lambda j: _SEEN[known.targets[j.gold["target"]] == 0],
            "novelty": lambda j: _novelty(known.targets_of.get(j.gold["mention"]), j.gold["target"]),
        }
    if known.described:
        found["described"] = lambda j: _DESCRIBED[j.gold["target"] not in known.described]
    if known.entities:
        found["mention_is_name"] = lambda j: _NAMES[j.gold["mention"] not in known.popularity]
    if edges := known.quarters():
        found["kb_popularity"] = lambda j: _quarter(known.popularity.get(j.gold["target"]), edges)
    return found


def _novelty(targets: Counter[str] | None, target: str) -> str:
    """Whether the training files have the mention, and this target for it."""
    return _NOVELTY[2 if not targets else target not in targets]


def times(count: int) -> str:
    """How often an entity was a target in training, in words."""
    return _TIMES[bisect_left((0, 1, 5), count)]


def _quarter(value: float | None, edges: Sequence[float]) -> str:
    return _QUARTERS[4 if value is None else bisect_right(edges, value)]


def _shortened(labels: Sequence[str | None]) -> list[str | None]:
    """The labels with the rarest ones replaced by one, if there are more than a table can show."""
    kept = {label for label, _ in Counter(x for x in labels if x is not None).most_common(MOST)}
    return [label if label is None or label in kept else REST for label in labels]


def _ordered(name: str, labels: Sequence[str | None]) -> list[str]:
    """The labels that occur: in the breakdown's order, or the most frequent first."""
    orders = {
        "ambiguity": _AMBIGUITY,
        "popularity": _TIMES,
        "kb_popularity": _QUARTERS,
        "mention_is_name": _NAMES,
        "seen": _SEEN,
        "novelty": _NOVELTY,
        "described": _DESCRIBED,
    }
    counts = Counter(label for label in labels if label is not None)
    if name in orders:
        return [label for label in orders[name] if label in counts]
    return sorted(counts, key=lambda label: (label == REST, -counts[label], label))
