"""A study as one HTML file: a plot and a table for each group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemel_ray import storage
from gemel_ray.evaluation.table import interval, value
from gemel_ray.plots import Axis, Series, bars
from gemel_ray.report.page import page

_HEADS = (
    "",
    "accuracy",
    "95% interval",
    "against the base",
    "p",
    "target in candidates",
    "targets seen in training",
    "never seen",
    "tokens computed a mention",
    "seconds",
)


def write_page(found: dict[str, Any], path: Path) -> None:
    """Write the page of what `study` returned."""
    groups: dict[str, list[dict[str, Any]]] = {"": [found["base"]]}
    for row in found["cells"]:
        groups.setdefault(row["group"], []).append(row)
    subtitle = (
        f"{found['documents']:,} documents of {', '.join(found['gold'])}; 95% intervals by bootstrap over "
        "documents; p by McNemar's exact test against the base, on the same mentions; seconds with start-up"
    )
    text = page(
        "study.html",
        title="A study of the configuration",
        subtitle=subtitle,
        heads=_HEADS,
        groups=[_group(name, rows) for name, rows in groups.items()],
        left_out=[(row["group"], row["cell"], row["why"]) for row in found["left_out"]],
    )
    storage.write(path, text)


def _group(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "title": name.capitalize() or "The base",
        "plot": _plot(name, rows) if name else None,
        "rows": [_cells(row) for row in rows],
    }


def _plot(name: str, rows: list[dict[str, Any]]) -> str:
    known = [row["accuracy"] for row in rows]
    series = Series(
        "accuracy",
        [f["value"] for f in known],
        [(f["interval_95"] or [f["value"]])[0] for f in known],
        [(f["interval_95"] or [f["value"]])[-1] for f in known],
    )
    names = [row["cell"].replace(", ", "\n") for row in rows]
    return bars(names, [series], title=name, y=Axis(percent=True, ends=(0, 1)))


def _cells(row: dict[str, Any]) -> list[str]:
    targets = row["targets"] or {}
    parts = [f"{value(f)} of {f['mentions']:,}" for f in targets.values()] + ["-", "-"]
    shift = row["difference"]
    return [
        row["cell"],
        value(row["accuracy"]),
        interval(row["accuracy"]),
        f"{100 * (shift['value'] or 0):+.1f} points",
        f"{row['mcnemar_p']:.2g}",
        value(row["among_candidates"]),
        *parts[:2],
        f"{row['computed']:,.0f}",
        f"{row['seconds']:,.0f}",
    ]
