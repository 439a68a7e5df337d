"""The page of an evaluation: figures, plots, tables, the runs' disagreements, every mention.

It computes nothing: it shows what evaluation found. The names and formats of figures are those of the
terminal, in gemel_ray/evaluation/table.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path

from gemel_ray import storage
from gemel_ray.evaluation import Evaluation
from gemel_ray.evaluation.judged import Judged, pictures, whole_links
from gemel_ray.evaluation.plain import PlainCalibration, PlainComparison, PlainEvaluation
from gemel_ray.evaluation.resampling import PlainFigure
from gemel_ray.evaluation.table import BASELINE, CALIBRATION, HEADLINE, LINKERS, POPULARITY, interval, value
from gemel_ray.plots import Axis, Series, bars, lines
from gemel_ray.records import Row
from gemel_ray.report.cards import NIL, candidates, marked, thumbnail
from gemel_ray.report.page import page

Picture = Callable[[str], str | None]  # a demonstration's id to its picture as a data: URL
_SHOWN = 300  # mentions
_DISAGREEMENTS = 200  # shown; the JSON has all of them
_KNOWN_SETS = ("wikidiverse", "wikimel")


def write_report(
    found: Evaluation,
    path: Path,
    *,
    title: str,
    summary: Sequence[tuple[str, str]] = (),
    picture: Picture = lambda _: None,
    comparison: PlainComparison | None = None,
) -> None:
    """Write the page: `summary` rows at the top, a `comparison`'s figures where there is one, the first
    mentions, wrong ones before right ones."""
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
        cards=_cards(found, picture),
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


def _subtitle(figures: PlainEvaluation) -> str:
    rows = ", ".join(f"{n:,} {status}" for status, n in sorted(figures["statuses"].items()))
    knowledge = f", {figures['entities']:,} entities" if figures["entities"] else ""
    return (
        f"{figures['mentions']:,} mentions of {figures['documents']:,} documents ({rows}){knowledge}; "
        f"95% intervals by bootstrap over documents"
    )


def _tiles(figures: PlainEvaluation) -> Iterator[tuple[str, str, str]]:
    """The most important figures."""
    head, baseline = figures["headline"], figures["baseline"]
    yield _tile("accuracy", head["accuracy"])
    if figures["gold_nil"]:
        yield _tile(HEADLINE["accuracy_with_nil"], head["accuracy_with_nil"])
    if baseline:
        yield _tile(LINKERS[baseline["linker"]], baseline["accuracy"])
    yield _tile(HEADLINE["among_candidates"], head["among_candidates"])
    yield _tile("MRR", head["mrr"], "mrr")
    if found := figures["calibration"]:
        error = found["expected_calibration_error"]
        yield _tile(CALIBRATION["expected_calibration_error"], error, "expected_calibration_error")


def _tile(title: str, figure: PlainFigure, name: str = "") -> tuple[str, str, str]:
    return title, value(figure, name), interval(figure, name) or "no interval"


def _published(figures: PlainEvaluation) -> list[tuple[str, ...]]:
    """A table of this run and published results; empty where no data set is one of the published."""
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


def _cards(found: Evaluation, picture: Picture) -> list[Row]:
    """The first judged mentions, wrong ones before right ones. Pictures are in the page, scaled down."""
    shown = sorted([*found.judged, *found.nil], key=lambda j: j.right)[:_SHOWN]
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


# The page's plots, from the dictionary of figures.
#
# Here are the plots and their titles; gemel_ray/plots.py draws them. Where the baseline has the same figure,
# both are shown.


_SHARE = (0.0, 1.0)
_ACCURACY = Axis("accuracy", _SHARE, percent=True)
_BY = {
    "popularity": ("Accuracy by popularity of the target", "times a target in training"),
    "ambiguity": ("Accuracy by ambiguity of the mention", "targets of the mention in training"),
    "kb_popularity": ("Accuracy by the knowledge base's popularity", "quarter of its names"),
}


def drawn(figures: PlainEvaluation) -> list[str]:
    """The SVG of every plot for which there are figures."""
    return [*_calibration(figures["calibration"]), *_breakdowns(figures), *_popularity(figures)]


def figure_series(name: str, figures: Sequence[PlainFigure], x: Sequence[float] = ()) -> Series:
    """Figures with their intervals; nan where there is none."""
    ends = [figure["interval_95"] or (nan, nan) for figure in figures]
    values = [nan if figure["value"] is None else figure["value"] for figure in figures]
    return Series(name, values, [low for low, _ in ends], [high for _, high in ends], x)


def _calibration(found: PlainCalibration | None) -> Iterator[str]:
    if not found:
        return
    bins, steps = found["reliability"], found["coverage"]
    probability = Axis("probability", _SHARE, percent=True)
    sure = figure_series("right", [b["accuracy"] for b in bins], [b["probability"] for b in bins])
    yield lines([sure], title="Reliability", x=probability, y=_ACCURACY, dots=True, diagonal=True)
    covered = figure_series("accuracy", [s["accuracy"] for s in steps], [s["coverage"] for s in steps])
    share = Axis("share answered, surest first", _SHARE, percent=True)
    lowest = min((low for low in covered.low or () if not isnan(low)), default=0.0)
    accuracy = Axis("accuracy of the answered", (0.1 * int(10 * lowest), 1.0), percent=True)
    yield lines([covered], title="Accuracy when only the surest are answered", x=share, y=accuracy, dots=True)


def _breakdowns(figures: PlainEvaluation) -> Iterator[str]:
    baseline = figures["baseline"]
    for name, (title, x) in _BY.items():
        if table := figures["breakdowns"].get(name):
            both = [figure_series("this run", list(table.values()))]
            if baseline:
                both.append(figure_series("without a model", list(baseline["breakdowns"][name].values())))
            yield bars(list(table), both, title=title, y=_ACCURACY, x=x)


def _popularity(figures: PlainEvaluation) -> Iterator[str]:
    found, baseline = figures["popularity"], figures["baseline"]
    if not found:
        return
    runs = {"this run": found} | ({"without a model": baseline["popularity"]} if baseline else {})
    means = [figure_series(name, [f["true_mean"], f["predicted_mean"]]) for name, f in runs.items()]
    groups = ["the right entity", "the answer"]
    yield bars(groups, means, title="Popularity of what was answered", y=Axis("mean times in training"))
    wrong = ["wrong_more", "wrong_equal", "wrong_less"]
    shares = [figure_series(name, [f[key] for key in wrong]) for name, f in runs.items()]
    y = Axis("share of wrong answers", percent=True)
    groups = ["more popular", "as popular", "less popular"]
    yield bars(groups, shares, title="Wrong answers against the right entity", y=y, x="the answer is")


# Published accuracies of multimodal entity linking, to compare with.
#
# Settings differ between papers, above all the knowledge base. So each figure has its source and its number
# of entities; a difference between figures is not only one between systems.


@dataclass(frozen=True)
class Published:
    """Accuracies in percent; None: not reported."""

    system: str
    wikidiverse: float | None
    wikimel: float | None
    source: str
    entities: str


_KGMEL = "110,000 to 160,000"
_SAME = "as reported in KGMEL's setting"
PUBLISHED = (
    Published("GEMEL v1, OPT-6.7B", 82.77, 75.53, "the released checkpoints' names", "not stated"),
    Published("GEMEL", 86.3, 82.6, "Shi et al., LREC-COLING 2024 (arXiv 2306.12725)", "not stated"),
    Published("GELR", None, 84.8, "its paper; generative, on its own data", "not stated"),
    Published("KGMEL", 88.23, 90.58, "its paper; triples, retrieval, a language model ranks again", _KGMEL),
    Published("MMoE", 77.57, 90.77, _SAME, _KGMEL),
    Published("M3EL", 74.06, 88.84, _SAME, _KGMEL),
    Published("MIMIC", 63.51, 87.98, _SAME, _KGMEL),
    Published("CLIP, zero-shot", 61.21, 83.23, _SAME, _KGMEL),
)
