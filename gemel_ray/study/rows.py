"""The rows of a study, as study.json has them; the table and the page show the same."""

from __future__ import annotations

from typing import TypedDict

from gemel_ray.evaluation.resampling import PlainFigure


class CellRow(TypedDict):
    """One cell. `targets`: the accuracy of seen and unseen targets; `computed`: prompt tokens per mention
    that were not in the prefix cache; `seconds`: with start-up."""

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
    seconds: float
    computed: float
    requests: float


class LeftOut(TypedDict):
    """A cell that cannot be measured, and the reason."""

    group: str
    cell: str
    why: str


class StudyRows(TypedDict):
    """The whole study."""

    gold: list[str]
    documents: int
    workspace: str
    base: CellRow
    cells: list[CellRow]
    left_out: list[LeftOut]
