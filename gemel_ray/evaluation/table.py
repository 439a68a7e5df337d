"""The figures as text for the terminal. The page, too, takes names and formats of figures from here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gemel_ray.evaluation.plain import PlainComparison, PlainEvaluation
from gemel_ray.evaluation.resampling import PlainFigure

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
NUMBERS = ("mrr", "predicted_mean", "true_mean", "brier", "expected_calibration_error")  # not shares
BREAKDOWNS = {
    "dataset": "by data set",
    "type": "by type",
    "ambiguity": "by number of targets the mention has in training",
    "mention_is_name": "by whether the mention is a name of the knowledge base",
    "popularity": "by how often the target was one in training",
    "kb_popularity": "by quarter of the target's popularity in the knowledge base",
    "seen": "by whether the target was one in training",
    "novelty": "by whether training has the mention, and the target for it",
    "described": "by whether the knowledge base describes the target",
}
LINKERS = {"names": "baseline without a model", "ranker": "the ranker without a language model"}
BASELINE = {
    "difference": "the run is better by",
    "all_candidates": "target among all its candidates",
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


def value(figure: PlainFigure, name: str = "") -> str:
    """A figure without its interval; `name` chooses between a number and percent."""
    return "-" if figure["value"] is None else _formatted(figure["value"], name)


def interval(figure: PlainFigure, name: str = "") -> str:
    """A figure's 95% interval; empty if it has none."""
    return " to ".join(_formatted(end, name) for end in figure["interval_95"] or ())


def _formatted(number: float, name: str) -> str:
    return f"{number:.3f}" if name in NUMBERS else f"{number:.1%}"


def title(breakdown: str) -> str:
    """The heading of a breakdown's table."""
    return f"Accuracy {BREAKDOWNS[breakdown]}"


def evaluation_text(figures: PlainEvaluation) -> str:
    """All figures, one per line, in sections."""
    return "\n".join(_lines(figures))


def _lines(figures: PlainEvaluation) -> Iterator[str]:
    rows = ", ".join(f"{n:,} {status}" for status, n in sorted(figures["statuses"].items()))
    left_out = f"{figures['without_target']:,} without target left out, {figures['gold_nil']:,} of them NIL"
    yield f"{'mentions':<40}{figures['mentions']:>6,}  ({rows}; {left_out})"
    yield from _section(HEADLINE, figures["headline"])
    if baseline := figures["baseline"]:
        named = {"accuracy": baseline["accuracy"], "difference": baseline["difference"]}
        if "all_candidates" in baseline:
            named["all_candidates"] = baseline["all_candidates"]
        if "undescribed" in baseline:
            named["undescribed"] = baseline["undescribed"]
        yield from _section({"accuracy": LINKERS[baseline["linker"]]} | BASELINE, named)
    for name, table in figures["breakdowns"].items():
        yield f"\n{title(name)}"
        yield from _section({label: label for label in table}, table, count=True)
    if figures["popularity"]:
        yield "\nPopularity"
        yield from _section(POPULARITY, figures["popularity"])
    if calibration := figures["calibration"]:
        yield "\nCalibration of the probabilities"
        errors = {
            "expected_calibration_error": calibration["expected_calibration_error"],
            "brier": calibration["brier"],
        }
        yield from _section(CALIBRATION, errors)


def _section(
    names: Mapping[str, str], figures: Mapping[str, PlainFigure], count: bool = False
) -> Iterator[str]:
    for name, shown in names.items():
        if name not in figures:
            continue
        figure = figures[name]
        within = f"  ({interval(figure, name)})" if figure["interval_95"] else ""
        of = f"  of {figure['mentions']:,}" if count else ""
        yield f"{shown[:38]:<40}{value(figure, name):>6}{within}{of}"


def comparison_text(figures: PlainComparison) -> str:
    """Two runs, with notes and the first of the mentions with different answers."""
    shown = {
        "this run": figures["accuracy"],
        "the other run": figures["accuracy_against"],
        "difference": figures["difference"],
    }
    different = figures["disagreements"]
    rows = [
        f"\n\ncompared with the other run, {figures['mentions']:,} mentions",
        *(f"note: {note}" for note in figures["notes"]),
        *(
            f"{name} = {ours!r} here, {theirs!r} there"
            for name, (ours, theirs) in figures["settings"].items()
        ),
        *_section({name: name for name in shown}, shown),
        f"{'only this run right, only the other':<40}{figures['won']:,}, {figures['lost']:,}  "
        f"(McNemar's exact test: p = {figures['mcnemar_p']:.2g})",
        f"{'different answers':<40}{len(different):,}" + (", the first of them:" if different else ""),
        *(
            f"  {row['document_id']} {row['mention']!r}: {row['answer']} here, {row['answer_against']} "
            f"there; should be {row['target']}"
            for row in different[:MOST]
        ),
    ]
    return "\n".join(rows)
