"""A study as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gemel_ray.evaluation.table import interval, value

_HEADS = ("accuracy", "95% interval", "against base", "p", "computed", "seconds")


def lines(found: dict[str, Any]) -> Iterator[str]:
    """One a cell; `computed`: prompt tokens a mention beyond the prefix cache; seconds with start-up."""
    yield _line("", *_HEADS)
    group = ""
    for row in (found["base"], *found["cells"]):
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
    for row in found["left_out"]:
        yield f"\nleft out: {row['group']}: {row['cell']}: {row['why']}"


def _line(name: str, accuracy: str, within: str, shift: str, chance: str, computed: str, seconds: str) -> str:
    cell = f"  {name[:38]:<40}{accuracy:>9}  {within:<16}"
    return f"{cell}{shift:>13}{chance:>8}{computed:>10}{seconds:>9}"
