"""A study as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from gemel_ray.evaluation.table import interval, value
from gemel_ray.study.rows import StudyRows

_HEADS = ("accuracy", "95% interval", "against base", "p", "computed", "seconds")


def lines(study: StudyRows) -> Iterator[str]:
    """One line per cell."""
    yield _line("", *_HEADS)
    group = ""
    for row in (study["base"], *study["cells"]):
        if row["group"] != group:
            group = row["group"]
            yield f"\n{group}"
        yield _line(
            row["cell"],
            value(row["accuracy"]),
            interval(row["accuracy"]),
            f"{100 * (row['difference']['value'] or 0):+.1f}",
            f"{row['mcnemar_p']:.2g}",
            f"{row['computed']:,.0f}",
            f"{row['seconds']:,.0f}",
        )
    for left_out in study["left_out"]:
        yield f"\nleft out: {left_out['group']}: {left_out['cell']}: {left_out['why']}"


def _line(name: str, accuracy: str, within: str, shift: str, chance: str, computed: str, seconds: str) -> str:
    cell = f"  {name[:38]:<40}{accuracy:>9}  {within:<16}"
    return f"{cell}{shift:>13}{chance:>8}{computed:>10}{seconds:>9}"
