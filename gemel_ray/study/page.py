"""A study as one HTML file: a plot and a table for each group."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from gemel_ray import storage
from gemel_ray.evaluation.table import value
from gemel_ray.plots import Axis, bars
from gemel_ray.report.evaluated import figure_series
from gemel_ray.report.page import page
from gemel_ray.study.rows import CellRow, StudyRows
from gemel_ray.study.table import HEADS, MEANING, cells, costs, machine_of

_HEADS = (
    "",
    *HEADS,
    "target in candidates",
    "targets seen in training",
    "not seen",
    "seconds, with start-up",
)


class _Group(TypedDict):
    """What the template shows of a group."""

    title: str
    plot: str | None
    rows: list[list[str]]


def write_page(study: StudyRows, path: Path) -> None:
    """Write the page of what `study` returned."""
    groups: dict[str, list[CellRow]] = {"": [study["base"]]}
    for row in study["cells"]:
        groups.setdefault(row["group"], []).append(row)
    subtitle = (
        f"{study['documents']:,} documents of {', '.join(study['gold'])}; {machine_of(study)}; "
        f"ms of the base by stage: {costs(study['base'])}. {MEANING}"
    )
    text = page(
        "study.html",
        title="A study of the configuration",
        subtitle=subtitle,
        heads=_HEADS,
        groups=[_group(name, rows) for name, rows in groups.items()],
        left_out=[(one["group"], one["cell"], one["why"]) for one in study["left_out"] + study["failed"]],
    )
    storage.write(path, text)


def _group(name: str, rows: list[CellRow]) -> _Group:
    return {
        "title": name.capitalize() or "The base",
        "plot": _plot(name, rows) if name else None,
        "rows": [_cells(row) for row in rows],
    }


def _plot(name: str, rows: list[CellRow]) -> str:
    names = [row["cell"].replace(", ", "\n") for row in rows]
    accuracy = figure_series("accuracy", [row["accuracy"] for row in rows])
    return bars(names, [accuracy], title=name, y=Axis(percent=True, ends=(0, 1)))


def _cells(row: CellRow) -> list[str]:
    targets = row["targets"] or {}
    parts = [f"{value(f)} of {f['mentions']:,}" for f in targets.values()] + ["-", "-"]
    return [row["cell"], *cells(row), value(row["among_candidates"]), *parts[:2], f"{row['seconds']:,.0f}"]
