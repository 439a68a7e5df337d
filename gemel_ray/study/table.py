"""A study as tables: for the terminal, and as Markdown for a page of documentation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from gemel_ray.evaluation.resampling import PlainFigure
from gemel_ray.evaluation.table import interval, value
from gemel_ray.study.rows import CellRow, StudyRows

HEADS = ("accuracy", "95% interval", "change", "95% interval", "p", "asked", "tokens", "ms", "pace", "making")
MEANING = (
    "Accuracy with its 95% interval by bootstrap over documents; its change from the base in points, on the "
    "same mentions, and p by McNemar's exact test. Where the interval of a change has 0 in it, it may be "
    "chance. asked: share of the mentions that the language model was asked about; tokens: of prompts, "
    "computed per mention; ms: processor milliseconds per mention of all stages, without start-up; pace: "
    "that of the base is 1; making: processor seconds in which a ranker was fitted, or weights were learned, "
    "for this row."
)


def cells(row: CellRow) -> list[str]:
    """What the columns `HEADS` show of a row."""
    spent = sum(row["processor"].values())
    return [
        value(row["accuracy"]),
        interval(row["accuracy"]),
        _points(row["difference"]["value"]),
        _range(row["difference"]),
        f"{row['mcnemar_p']:.2g}",
        f"{row['asked']:.0%}",
        f"{row['computed']:,.0f}",
        f"{spent:.1f}" if spent else "-",
        "-" if row["pace"] is None else f"{row['pace']:.2f}",
        "-" if row["making"] is None else f"{row['making']:,.0f}",
    ]


def _points(share: float | None) -> str:
    return f"{100 * (share or 0):+.1f}"


def _range(figure: PlainFigure) -> str:
    return " to ".join(map(_points, figure["interval_95"] or ()))


def costs(row: CellRow) -> str:
    """Processor milliseconds per mention of each stage."""
    return ", ".join(f"{stage} {ms:.2f}" for stage, ms in row["processor"].items())


def machine_of(study: StudyRows) -> str:
    """What the costs depend on."""
    known = study["machine"]
    gpus = ", ".join(known["gpus"]) or "no GPU"
    commit = f", commit {known['commit']}" if known["commit"] else ""
    cores = "1 core" if known["cores"] == 1 else f"{known['cores']} cores"
    return f"{cores} ({known['processor']}), {known['memory_gib']:.0f} GiB, {gpus}{commit}"


def lines(study: StudyRows) -> Iterator[str]:
    """One line per cell."""
    yield _line("", HEADS)
    for group, rows in _groups(study):
        if group:
            yield f"\n{group}"
        yield from (_line(row["cell"], cells(row)) for row in rows)
    yield f"\nprocessor ms per mention of the base: {costs(study['base'])}\n{machine_of(study)}"
    for title, some in (("left out", study["left_out"]), ("failed", study["failed"])):
        yield from (f"{title}: {one['group']}: {one['cell']}: {one['why']}" for one in some)


def _line(name: str, shown: tuple[str, ...] | list[str]) -> str:
    widths = (9, 16, 8, 16, 8, 6, 7, 7, 6, 7)
    return f"  {name[:33]:<33}" + "".join(f"{text:>{w}}" for text, w in zip(shown, widths, strict=True))


def markdown(study: StudyRows) -> str:
    """Tables for a page of documentation, one per group."""
    names = ", ".join(Path(file).name for file in study["gold"])
    base = study["base"]
    head = (
        f"{study['documents']:,} documents of {names}, {base['mentions']:,} mentions; {machine_of(study)}; "
        f"processor ms per mention of the base: {costs(base)}. {MEANING}\n"
    )
    tables = [_table(group or "base", rows) for group, rows in _groups(study)]
    return "\n".join([head, *tables])


def _table(group: str, rows: list[CellRow]) -> str:
    written = [(group, *HEADS), ("---",) * (1 + len(HEADS)), *((row["cell"], *cells(row)) for row in rows)]
    return "".join(f"| {' | '.join(texts)} |\n" for texts in written)


def _groups(study: StudyRows) -> Iterator[tuple[str, list[CellRow]]]:
    for group, rows in groupby([study["base"], *study["cells"]], key=lambda row: row["group"]):
        yield group, list(rows)
