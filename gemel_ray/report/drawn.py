"""The page's plots, from the dictionary of figures.

Which plots there are, and what they are called; how a plot looks stands in gemel_ray/plots.py. Where the
baseline has the same figure, it stands beside the run's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isnan, nan
from typing import Any

from gemel_ray.plots import Axis, Series, bars, lines

Row = dict[str, Any]
_SHARE = (0.0, 1.0)
_ACCURACY = Axis("accuracy", _SHARE, percent=True)
_BY = {
    "popularity": ("Accuracy by popularity of the target", "times a target in training"),
    "ambiguity": ("Accuracy by ambiguity of the mention", "targets of the mention in training"),
    "kb_popularity": ("Accuracy by the knowledge base's popularity", "quarter of its names"),
}


def drawn(figures: Row) -> list[str]:
    """SVG of every plot that there are figures for."""
    return [*_calibration(figures["calibration"]), *_breakdowns(figures), *_popularity(figures)]


def series(name: str, figures: Sequence[Row], x: Sequence[float] = ()) -> Series:
    """Figures with their intervals; nan where one has none."""
    ends = [figure["interval_95"] or (nan, nan) for figure in figures]
    values = [nan if figure["value"] is None else figure["value"] for figure in figures]
    return Series(name, values, [low for low, _ in ends], [high for _, high in ends], x)


def _calibration(found: Row | None) -> Iterator[str]:
    if not found:
        return
    bins, steps = found["reliability"], found["coverage"]
    said = Axis("probability", _SHARE, percent=True)
    sure = series("right", [b["accuracy"] for b in bins], [b["probability"] for b in bins])
    yield lines([sure], title="Reliability", x=said, y=_ACCURACY, dots=True, diagonal=True)
    covered = series("accuracy", [s["accuracy"] for s in steps], [s["coverage"] for s in steps])
    share = Axis("share answered, surest first", _SHARE, percent=True)
    lowest = min((low for low in covered.low or () if not isnan(low)), default=0.0)
    accuracy = Axis("accuracy of the answered", (0.1 * int(10 * lowest), 1.0), percent=True)
    yield lines([covered], title="Accuracy when only the surest are answered", x=share, y=accuracy, dots=True)


def _breakdowns(figures: Row) -> Iterator[str]:
    baseline = figures["baseline"]
    for name, (title, x) in _BY.items():
        if table := figures["breakdowns"].get(name):
            both = [series("this run", list(table.values()))]
            if baseline:
                both.append(series("without a model", list(baseline["breakdowns"][name].values())))
            yield bars(list(table), both, title=title, y=_ACCURACY, x=x)


def _popularity(figures: Row) -> Iterator[str]:
    found, baseline = figures["popularity"], figures["baseline"]
    if not found:
        return
    runs = {"this run": found} | ({"without a model": baseline["popularity"]} if baseline else {})
    means = [series(name, [f["true_mean"], f["predicted_mean"]]) for name, f in runs.items()]
    groups = ["the right entity", "the answer"]
    yield bars(groups, means, title="Popularity of what was answered", y=Axis("mean times in training"))
    wrong = ["wrong_more", "wrong_equal", "wrong_less"]
    shares = [series(name, [f[key] for key in wrong]) for name, f in runs.items()]
    y = Axis("share of wrong answers", percent=True)
    groups = ["more popular", "as popular", "less popular"]
    yield bars(groups, shares, title="Wrong answers against the right entity", y=y, x="the answer is")
