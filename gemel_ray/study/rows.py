"""The rows of a study, as study.json has them: what each cell got, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from gemel_ray.evaluation import Evaluation, compare
from gemel_ray.evaluation.resampling import PlainFigure
from gemel_ray.job.record import Manifest, read_manifest
from gemel_ray.measuring.machine import Machine
from gemel_ray.stage import Measures
from gemel_ray.study.cells import Cell


class CellRow(TypedDict):
    """One cell. `difference`: of the accuracy from the base's, on the same mentions, with its interval;
    `targets`: the accuracy of seen and unseen targets. `asked`: share of the mentions that the language model
    was asked about; `computed`: prompt tokens per mention that were not in the prefix cache; `processor`:
    processor milliseconds per mention by stage, without start-up; `pace`: how many times the base's pace that
    makes; `making`: processor seconds of fitting the cell's ranker or learning its weights; `seconds`: of the
    job, with start-up."""

    group: str
    cell: str
    settings: list[str]
    variant: str
    run: str
    mentions: int
    accuracy: PlainFigure
    among_candidates: PlainFigure
    difference: PlainFigure
    mcnemar_p: float
    targets: dict[str, PlainFigure] | None
    asked: float
    computed: float
    requests: float
    processor: dict[str, float]
    pace: float | None
    making: float | None
    seconds: float


class LeftOut(TypedDict):
    """A cell that was not measured, and the reason."""

    group: str
    cell: str
    why: str


class StudyRows(TypedDict):
    """The whole study. `failed`: cells that the same command tries again."""

    gold: Sequence[str]
    documents: int
    workspace: str
    machine: Machine
    base: CellRow
    cells: list[CellRow]
    left_out: list[LeftOut]
    failed: list[LeftOut]


def row(group: str, cell: Cell, run: Evaluation, base: Evaluation, making: float | None) -> CellRow:
    """The row of a cell with this evaluation."""
    figures, measures = run.figures(), _measures(run)
    usage, mentions = measures.get("generate", {}), _mentions(measures)
    against, processor = compare(_aligned(run, base), base).figures(), _processor(measures)
    spent, of_base = sum(processor.values()), sum(_processor(_measures(base)).values())
    return {
        "group": group,
        "cell": cell.name,
        "settings": list(cell.settings),
        "variant": cell.variant,
        "run": _output(run).name,
        "mentions": figures["mentions"],
        "accuracy": figures["headline"]["accuracy"],
        "among_candidates": figures["headline"]["among_candidates"],
        "difference": against["difference"],
        "mcnemar_p": against["mcnemar_p"],
        "targets": figures["breakdowns"].get("seen"),
        "asked": round(1 - usage["ranked"] / mentions, 4) if "ranked" in usage else 0.0,
        "computed": round((usage.get("asked", 0) - usage.get("cached", 0)) / mentions, 1),
        "requests": round(usage.get("requests", 0) / mentions, 2),
        "processor": {stage: round(ms, 3) for stage, ms in processor.items()},
        "pace": round(of_base / spent, 3) if spent and of_base else None,
        "making": making,
        "seconds": _manifest(run)["seconds"],
    }


def _manifest(run: Evaluation) -> Manifest:
    manifest = read_manifest(_output(run))
    assert manifest is not None
    return manifest


def _measures(run: Evaluation) -> Measures:
    """The measures of the job's last run; a job that was stopped and continued has more links than these."""
    return _manifest(run)["measures"]


def _mentions(measures: Mapping[str, Any]) -> int:
    return max(1, int(measures["rows"].get("retrieve", 0)))


def _processor(measures: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds per mention by stage; none of a job of an earlier version."""
    mentions = _mentions(measures)
    return {stage: 1000 * s / mentions for stage, s in measures.get("processor", {}).items()}


def _aligned(run: Evaluation, base: Evaluation) -> Evaluation:
    """`run` with the gold mentions of `base`: they are the same in the same order, but a variant may have
    changed their words and places."""
    pairs = zip(run.judged, base.judged, strict=True)
    return replace(run, judged=[replace(ours, gold=theirs.gold) for ours, theirs in pairs])


def _output(run: Evaluation) -> Path:
    assert isinstance(run.output, Path)
    return run.output
