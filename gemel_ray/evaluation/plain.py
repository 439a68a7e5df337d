"""An evaluation as `gemel-ray evaluate --json` prints it; the table and the page show the same figures."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from gemel_ray.evaluation.resampling import PlainFigure

Figures = dict[str, PlainFigure]  # by their names, or by the labels of a breakdown


class Bin(TypedDict):
    """The mean probability of a bin, and how many of its links are right."""

    probability: float
    accuracy: PlainFigure


class Step(TypedDict):
    """The accuracy of the links with at least this probability, and their share of all."""

    threshold: float
    coverage: float
    accuracy: PlainFigure


class PlainCalibration(TypedDict):
    """See calibration.py."""

    reliability: list[Bin]
    expected_calibration_error: PlainFigure
    brier: PlainFigure
    coverage: list[Step]


class PlainBaseline(TypedDict):
    """A linker without a language model on the same mentions. `difference`: the run's accuracy minus its
    accuracy; `all_candidates` and `undescribed` only of a ranker."""

    linker: str
    headline: Figures
    calibration: PlainCalibration | None
    accuracy: PlainFigure
    accuracy_with_nil: PlainFigure
    difference: PlainFigure
    breakdowns: dict[str, Figures]
    popularity: Figures
    all_candidates: NotRequired[PlainFigure]
    undescribed: NotRequired[PlainFigure]


class PlainEvaluation(TypedDict):
    """A run."""

    mentions: int
    accuracy: float | None
    interval_95: list[float] | None
    among_candidates: float | None
    statuses: dict[str, int]
    without_target: int
    gold_nil: int
    documents: int
    entities: int | None
    headline: Figures
    breakdowns: dict[str, Figures]
    popularity: Figures | None
    calibration: PlainCalibration | None
    baseline: PlainBaseline | None
    fingerprints: list[str]


class Disagreement(TypedDict):
    """A mention with different answers."""

    document_id: str
    mention_id: str
    mention: str
    target: str
    answer: str | None
    answer_against: str | None
    right: bool
    right_against: bool


class PlainComparison(TypedDict):
    """Two runs on the same mentions. `settings`: the values that differ, of this run and of the other."""

    mentions: int
    accuracy: PlainFigure
    accuracy_against: PlainFigure
    difference: PlainFigure
    won: int
    lost: int
    mcnemar_p: float
    notes: list[str]
    settings: dict[str, list[Any]]
    disagreements: list[Disagreement]
