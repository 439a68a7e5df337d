"""One HTML file that needs nothing else: figures, plots, tables, the runs' disagreements, every mention.

It computes nothing: it shows what evaluation found.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemel_ray import storage
from gemel_ray.evaluation import Evaluation
from gemel_ray.report.cards import Picture, cards
from gemel_ray.report.drawn import drawn
from gemel_ray.report.tables import (
    breakdown_tables,
    comparison_section,
    figures_table,
    published_table,
    table,
    tiles,
)


def write_report(
    found: Evaluation,
    path: Path,
    *,
    title: str,
    summary: Sequence[tuple[str, str]] = (),
    picture: Picture = lambda _: None,
    comparison: dict[str, Any] | None = None,
    most: int = 300,
) -> None:
    """Write the page: `summary` rows on top, a `comparison`'s figures where there is one, at most `most`
    mentions, wrong ones first."""
    figures = found.figures()
    plots = "".join(f"<figure>{svg}</figure>" for svg in drawn(figures))
    tables = "".join(breakdown_tables(figures))
    count, shown = cards(found, picture, most)
    note = f"{count:,} of {len(found.judged) + len(found.nil):,} mentions, wrong ones first"
    parts = [
        section("", tiles(figures) + (table(("this run", ""), summary) if summary else "")),
        section("Plots", f'<div class="plots">{plots}</div>' if plots else ""),
        section("Figures", figures_table(figures)),
        section("Breakdowns", f'<div class="tables">{tables}</div>' if tables else ""),
        section("Beside what was published", published_table(figures)),
        section("Against the other run", comparison_section(comparison) if comparison else ""),
        section("Mentions", f'<p class="small">{note}</p>{shown}'),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write(path, page(title, _subtitle(found), "".join(parts)))


def _subtitle(found: Evaluation) -> str:
    figures = found.figures()
    rows = ", ".join(f"{n:,} {status}" for status, n in sorted(figures["statuses"].items()))
    knowledge = f", {figures['entities']:,} entities" if figures["entities"] else ""
    return (
        f"{figures['mentions']:,} mentions of {figures['documents']:,} documents ({rows}){knowledge}; "
        f"95% intervals by bootstrap over documents"
    )


def section(title: str, body: str) -> str:
    if not body:
        return ""
    return f"<section>{f'<h2>{title}</h2>' if title else ''}{body}</section>"


def page(title: str, subtitle: str, body: str) -> str:
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{html.escape(title)}</title><style>{style}</style>'
        f'<h1>{html.escape(title)}</h1><p class="small">{html.escape(subtitle)}</p>{body}</html>'
    )
