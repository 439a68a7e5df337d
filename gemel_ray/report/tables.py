"""The page's tables, from the dictionary of figures.

HTML is made here, so whatever comes from files is escaped here. What a figure is called, and how it is
spelled, stands in gemel_ray/evaluation/table.py: the terminal says the same.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gemel_ray.evaluation.table import CALIBRATION, HEADLINE, LINKERS, POPULARITY, interval, title, value
from gemel_ray.report.literature import PUBLISHED

Row = dict[str, Any]
_DISAGREEMENTS = 200  # shown; the JSON has them all
_KNOWN_SETS = ("wikidiverse", "wikimel")


def tiles(figures: Row) -> str:
    """The few figures to be read first."""
    head, baseline = figures["headline"], figures["baseline"]
    shown = [_tile("accuracy", head["accuracy"])]
    if figures["gold_nil"]:
        shown.append(_tile(HEADLINE["accuracy_with_nil"], head["accuracy_with_nil"]))
    if baseline:
        shown.append(_tile(LINKERS[baseline["linker"]], baseline["accuracy"]))
    shown += [_tile(HEADLINE["among_candidates"], head["among_candidates"]), _tile("MRR", head["mrr"], "mrr")]
    if found := figures["calibration"]:
        name = "expected_calibration_error"
        shown.append(_tile(CALIBRATION[name], found[name], name))
    return f'<div class="tiles">{"".join(shown)}</div>'


def _tile(title: str, figure: Row, name: str = "") -> str:
    within = interval(figure, name) or "no interval"
    return f"<div><span>{title}</span><b>{value(figure, name)}</b><small>{within}</small></div>"


def figures_table(figures: Row) -> str:
    """All headline figures with their intervals."""
    rows = _named(HEADLINE, figures["headline"])
    if baseline := figures["baseline"]:
        names = {"accuracy": LINKERS[baseline["linker"]], "difference": "this run is better by"}
        rows += _named(names, baseline)
    rows += _named(POPULARITY, figures["popularity"] or {}) + _named(
        CALIBRATION, figures["calibration"] or {}
    )
    return table(("figure", "value", "95% interval", "mentions"), rows)


def _named(names: dict[str, str], figures: Row) -> list[tuple[str, ...]]:
    return [
        (shown, value(figures[name], name), interval(figures[name], name), f"{figures[name]['mentions']:,}")
        for name, shown in names.items()
        if name in figures
    ]


def breakdown_tables(figures: Row) -> Iterator[str]:
    """A titled table for each breakdown, with the baseline's accuracies where there are any."""
    beside = (figures["baseline"] or {}).get("breakdowns", {})
    for name, found in figures["breakdowns"].items():
        heads = ["", "mentions", "accuracy", "95% interval"]
        rows = [
            [label, f"{figure['mentions']:,}", _bar(figure), interval(figure)]
            + ([value(beside[name][label])] if beside else [])
            for label, figure in found.items()
        ]
        shown = table([*heads, *(["no model"] if beside else [])], rows, raw=(2,))
        yield f"<div><h3>{title(name)}</h3>{shown}</div>"


def _bar(figure: Row) -> str:
    width = 100 * (figure["value"] or 0)
    return f'<span class="share"><i style="width:{width:.1f}%"></i></span> {value(figure)}'


def published_table(figures: Row) -> str:
    """Ours beside what was published; empty where no data set is one that anything was published on."""
    ours = {name.casefold(): figure for name, figure in figures["breakdowns"]["dataset"].items()}
    if not any(name in ours for name in _KNOWN_SETS):
        return ""
    size = f"{figures['entities']:,}" if figures["entities"] else "not told (--entities)"
    first = [value(ours[n]) + f" ({interval(ours[n])})" if n in ours else "-" for n in _KNOWN_SETS]
    rows = [("<b>this run</b>", *first, "these gold files", size)]
    for one in PUBLISHED:
        shares = (f"{x}%" if x is not None else "-" for x in (one.wikidiverse, one.wikimel))
        rows.append((html.escape(one.system), *shares, html.escape(one.source), one.entities))
    note = (
        "Accuracy, %. Splits, training and knowledge bases differ between the sources: a figure means "
        "something only together with the entities that were chosen from."
    )
    heads = ("system", "WikiDiverse", "WikiMEL", "source", "entities chosen from")
    return f'<p class="small">{note}</p>{table(heads, rows, raw=range(5))}'


def comparison_section(figures: Row) -> str:
    """Two runs side by side, then the mentions they disagree on."""
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in figures["notes"])
    settings = [(name, str(ours), str(theirs)) for name, (ours, theirs) in figures["settings"].items()]
    names = {"accuracy": "this run", "accuracy_against": "the other run", "difference": "difference"}
    rows = _named(names, figures)
    apart = figures["disagreements"]
    shown = [
        (
            f"{_escaped(row['document_id'])}<br><b>{_escaped(row['mention'])}</b>",
            _escaped(row["target"]),
            _verdict(row["answer"], row["right"]),
            _verdict(row["answer_against"], row["right_against"]),
        )
        for row in apart[:_DISAGREEMENTS]
    ]
    heads = ("mention", "should be", "this run", "the other run")
    return (
        f"{notes}{table(('accuracy', 'value', '95% interval', 'mentions'), rows)}"
        f"<p>Only this run is right on {figures['won']:,}, only the other on {figures['lost']:,} "
        f"(McNemar&rsquo;s exact test: p = {figures['mcnemar_p']:.2g}).</p>"
        f"{table(('setting', 'this run', 'the other run'), settings) if settings else ''}"
        f"<details><summary>{len(apart):,} different answers"
        f"{f', the first {len(shown):,}' if len(shown) < len(apart) else ''}: lost, won, both wrong</summary>"
        f"{table(heads, shown, raw=range(4))}</details>"
    )


def _verdict(answer: str | None, right: bool) -> str:
    return f'<span class="{"right" if right else "wrong"}">{_escaped(answer or "no answer")}</span>'


def _escaped(text: object) -> str:
    return html.escape(str(text))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], raw: Iterable[int] = ()) -> str:
    """An HTML table that scrolls by itself where the screen is narrow; `raw` columns are HTML already."""
    ready = set(raw)
    head = "".join(f"<th>{html.escape(h)}</th>" for h in heads)
    body = "".join(
        "<tr>"
        + "".join(f"<td>{c if i in ready else html.escape(c)}</td>" for i, c in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
