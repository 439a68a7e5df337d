"""The page of an evaluation: figures, plots, tables, the runs' disagreements, every mention.

It computes nothing: it shows what evaluation found. What a figure is called, and how it is spelled, stands in
gemel_ray/evaluation/table.py: the terminal says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gemel_ray import storage
from gemel_ray.evaluation import Evaluation
from gemel_ray.evaluation.judged import Judged, pictures, whole_links
from gemel_ray.evaluation.table import BASELINE, CALIBRATION, HEADLINE, LINKERS, POPULARITY, interval, value
from gemel_ray.report.cards import NIL, candidates, marked, thumbnail
from gemel_ray.report.drawn import drawn
from gemel_ray.report.literature import PUBLISHED
from gemel_ray.report.page import page

Row = dict[str, Any]
Picture = Callable[[str], str | None]  # a demonstration's id to its picture as a data address
_DISAGREEMENTS = 200  # shown; the JSON has them all
_KNOWN_SETS = ("wikidiverse", "wikimel")


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
    text = page(
        "evaluation.html",
        title=title,
        subtitle=_subtitle(figures),
        figures=figures,
        tiles=list(_tiles(figures)),
        summary=summary,
        plots=drawn(figures),
        published=_published(figures),
        comparison=comparison,
        cards=_cards(found, picture, most),
        judged=len(found.judged) + len(found.nil),
        HEADLINE=HEADLINE,
        LINKERS=LINKERS,
        BASELINE=BASELINE,
        POPULARITY=POPULARITY,
        CALIBRATION=CALIBRATION,
        DISAGREEMENTS=_DISAGREEMENTS,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write(path, text)


def _subtitle(figures: Row) -> str:
    rows = ", ".join(f"{n:,} {status}" for status, n in sorted(figures["statuses"].items()))
    knowledge = f", {figures['entities']:,} entities" if figures["entities"] else ""
    return (
        f"{figures['mentions']:,} mentions of {figures['documents']:,} documents ({rows}){knowledge}; "
        f"95% intervals by bootstrap over documents"
    )


def _tiles(figures: Row) -> Iterator[tuple[str, str, str]]:
    """The few figures to be read first."""
    head, baseline = figures["headline"], figures["baseline"]
    yield _tile("accuracy", head["accuracy"])
    if figures["gold_nil"]:
        yield _tile(HEADLINE["accuracy_with_nil"], head["accuracy_with_nil"])
    if baseline:
        yield _tile(LINKERS[baseline["linker"]], baseline["accuracy"])
    yield _tile(HEADLINE["among_candidates"], head["among_candidates"])
    yield _tile("MRR", head["mrr"], "mrr")
    if found := figures["calibration"]:
        name = "expected_calibration_error"
        yield _tile(CALIBRATION[name], found[name], name)


def _tile(title: str, figure: Row, name: str = "") -> tuple[str, str, str]:
    return title, value(figure, name), interval(figure, name) or "no interval"


def _published(figures: Row) -> list[tuple[str, ...]]:
    """Ours beside what was published; nothing where no data set is one that anything was published on."""
    ours = {name.casefold(): figure for name, figure in figures["breakdowns"]["dataset"].items()}
    if not any(name in ours for name in _KNOWN_SETS):
        return []
    size = f"{figures['entities']:,}" if figures["entities"] else "not known (--entities)"
    first = [value(ours[n]) + f" ({interval(ours[n])})" if n in ours else "-" for n in _KNOWN_SETS]
    rows: list[tuple[str, ...]] = [("this run", *first, "these gold files", size)]
    for one in PUBLISHED:
        shares = (f"{x}%" if x is not None else "-" for x in (one.wikidiverse, one.wikimel))
        rows.append((one.system, *shares, one.source, one.entities))
    return rows


def _cards(found: Evaluation, picture: Picture, most: int) -> list[Row]:
    """At most `most` judged mentions, wrong ones first. Pictures stand in the page itself, scaled down."""
    shown = sorted([*found.judged, *found.nil], key=lambda j: j.right)[:most]
    wanted = {j.key for j in shown}
    links = whole_links(found.output, wanted) if found.output else {}
    images = pictures(found.gold, wanted)
    return [_card(j, links.get(j.key, {}), images.get(j.key, (None, None)), picture) for j in shown]


def _card(judged: Judged, link: Row, image: tuple[bytes | None, str | None], picture: Picture) -> Row:
    gold = judged.gold
    return {
        "text": marked(gold),
        "picture": thumbnail(*image),
        "answer": judged.answer or {"nil": NIL, "error": "error"}.get(judged.status, "missing"),
        "right": judged.right,
        "target": gold["target"] or NIL,
        "error": link.get("error"),
        "document_id": gold["document_id"],
        "mention_id": gold["mention_id"],
        "candidates": candidates(link),
        "why": link.get("why"),
        "demonstrations": [(i, picture(i)) for i in link.get("demonstrations") or []],
    }
