"""The figures for the terminal. Names and spelling of figures stand here once: the page uses them, too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]
HEADLINE = {
    "accuracy": "accuracy",
    "accuracy_of_ids": "accuracy by id",
    "accuracy_with_nil": "accuracy, gold NIL counted",
    "link_precision": "right among answers linked",
    "nil_precision": "right among answers nil",
    "nil_recall": "nil among gold NIL",
    "top_1": "target is first candidate",
    "top_3": "target in first three",
    "top_5": "target in first five",
    "among_candidates": "target in candidates",
    "mrr": "mean reciprocal rank",
    "errors": "errors",
    "nils": "answered nil",
    "missing": "missing",
}
NUMBERS = ("mrr", "predicted_mean", "true_mean", "brier", "expected_calibration_error")  # no shares
BREAKDOWNS = {
    "dataset": "by data set",
    "type": "by type",
    "ambiguity": "by number of targets the mention has in training",
    "mention_is_name": "by whether the mention is a name of the knowledge base",
    "popularity": "by how often the target was one in training",
    "kb_popularity": "by quarter of the target's popularity in the knowledge base",
    "seen": "by whether the target was one in training",
    "novelty": "by what training told of the mention",
    "described": "by whether the knowledge base describes the target",
}
LINKERS = {"names": "baseline without a model", "ranker": "the ranker without a language model"}
BASELINE = {
    "difference": "the run is better by",
    "all_candidates": "target among all it judges",
    "undescribed": "all descriptions hidden",
}
POPULARITY = {
    "true_mean": "times in training: the right entity",
    "predicted_mean": "times in training: the answer",
    "wrong_more": "wrong answers that are more popular",
    "wrong_equal": "wrong answers as popular",
    "wrong_less": "wrong answers that are less popular",
}
MOST = 10  # disagreements shown; the JSON has them all
CALIBRATION = {"expected_calibration_error": "expected calibration error", "brier": "Brier score"}


def value(figure: Row, name: str = "") -> str:
    """A figure without its interval."""
    if figure["value"] is None:
        return "-"
    return f"{figure['value']:.3f}" if name in NUMBERS else f"{figure['value']:.1%}"


def interval(figure: Row, name: str = "") -> str:
    """Its 95% interval; nothing where there is none."""
    if figure["interval_95"] is None:
        return ""
    return " to ".join(value({"value": end}, name) for end in figure["interval_95"])


def title(breakdown: str) -> str:
    """What its table shows."""
    return f"Accuracy {BREAKDOWNS[breakdown]}"


def told(figures: Row) -> str:
    """Every figure on a line, in sections."""
    return "\n".join(_lines(figures))


def _lines(figures: Row) -> Iterator[str]:
    rows = ", ".join(f"{n:,} {status}" for status, n in sorted(figures["statuses"].items()))
    left_out = f"{figures['without_target']:,} without target left out, {figures['gold_nil']:,} of them NIL"
    yield f"{'mentions':<40}{figures['mentions']:>6,}  ({rows}; {left_out})"
    yield from _section(HEADLINE, figures["headline"])
    if baseline := figures["baseline"]:
        yield from _section({"accuracy": LINKERS[baseline["linker"]]} | BASELINE, baseline)
    for name, table in figures["breakdowns"].items():
        yield f"\n{title(name)}"
        yield from _section({label: label for label in table}, table, count=True)
    if figures["popularity"]:
        yield "\nPopularity"
        yield from _section(POPULARITY, figures["popularity"])
    if figures["calibration"]:
        yield "\nProbability against right and wrong"
        yield from _section(CALIBRATION, figures["calibration"])


def _section(names: dict[str, str], figures: Row, count: bool = False) -> Iterator[str]:
    for name, shown in names.items():
        if name not in figures:
            continue
        figure = figures[name]
        within = f"  ({interval(figure, name)})" if figure["interval_95"] else ""
        of = f"  of {figure['mentions']:,}" if count else ""
        yield f"{shown[:38]:<40}{value(figure, name):>6}{within}{of}"


def compared(figures: Row) -> str:
    """Two runs, with what must be known of them and the first of the mentions they disagree on."""
    shown = {"accuracy": "this run", "accuracy_against": "the other run", "difference": "difference"}
    apart = figures["disagreements"]
    rows = [
        f"\n\nagainst the other run, {figures['mentions']:,} mentions",
        *(f"note: {note}" for note in figures["notes"]),
        *(
            f"{name} = {ours!r} here, {theirs!r} there"
            for name, (ours, theirs) in figures["settings"].items()
        ),
        *_section(shown, figures),
        f"{'only this run right, only the other':<40}{figures['won']:,}, {figures['lost']:,}  "
        f"(McNemar's exact test: p = {figures['mcnemar_p']:.2g})",
        f"{'different answers':<40}{len(apart):,}" + (", the first of them:" if apart else ""),
        *(
            f"  {row['document_id']} {row['mention']!r}: {row['answer']} here, {row['answer_against']} "
            f"there; should be {row['target']}"
            for row in apart[:MOST]
        ),
    ]
    return "\n".join(rows)
