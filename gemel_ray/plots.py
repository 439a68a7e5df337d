"""Plots as SVG text, for a page or a file.

Text and axes take the colour of the surrounding page, so they can be read in light and dark mode. Text stays
text: it is small, and it can be searched. matplotlib is imported when the first plot is drawn, and neither
its window system nor its global state is used. Knows nothing of links, training or studies.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#3b82f6", "#e08600", "#2da44e", "#a371f7", "#e5534b", "#8b949e")
_INK = "#010203"  # a placeholder that is replaced by the page's colour
_FONT = 10.0


@dataclass(frozen=True)
class Series:
    """One line, or one bar of every group: `y`, and optionally the ends of its intervals. An unknown value is
    nan and is left out. Bars have no `x`."""

    name: str
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    x: Sequence[float] = field(default=())


@dataclass(frozen=True)
class Axis:
    """One axis. `ends` None: by the values."""

    label: str = ""
    ends: tuple[float, float] | None = None
    percent: bool = False  # the values are fractions
    log: bool = False


def lines(
    series: Sequence[Series], *, title: str, x: Axis, y: Axis, dots: bool = False, diagonal: bool = False
) -> str:
    """Lines over `x`, with bands for intervals; `diagonal` draws the line x = y."""

    def draw(axes: Axes) -> None:
        if diagonal:
            axes.axline((0, 0), slope=1, color=_INK, alpha=0.4, linewidth=1, linestyle=(0, (4, 3)))
        for one, colour in zip(series, _colours(len(series)), strict=True):
            axes.plot(one.x, one.y, color=colour, label=one.name, marker="o" if dots else None, markersize=4)
            if one.low is not None and one.high is not None:
                axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.2, linewidth=0)

    return _drawn(draw, title, x, y, legend=len(series) > 1)


def bars(groups: Sequence[str], series: Sequence[Series], *, title: str, y: Axis, x: str = "") -> str:
    """Groups of bars side by side, one bar per series, with error bars for intervals."""

    def draw(axes: Axes) -> None:
        width = 0.76 / max(1, len(series))
        at = np.arange(len(groups))
        for number, (one, colour) in enumerate(zip(series, _colours(len(series)), strict=True)):
            place = at + width * (number - (len(series) - 1) / 2)
            axes.bar(place, one.y, width * 0.94, color=colour, label=one.name)
            if one.low is not None and one.high is not None:
                arms = np.clip([np.subtract(one.y, one.low), np.subtract(one.high, one.y)], 0, None)
                axes.errorbar(place, one.y, arms, fmt="none", ecolor=_INK, elinewidth=1, capsize=3)
        axes.set_xticks(at, groups)

    return _drawn(draw, title, Axis(x), y, legend=len(series) > 1)


def curve(series: Sequence[Series], *, title: str, y: Axis) -> str:
    """Values by step, as training writes them."""

    def draw(axes: Axes) -> None:
        for one, colour in zip(series, _colours(len(series)), strict=True):
            axes.plot(one.x, one.y, color=colour, label=one.name)

    return _drawn(draw, title, Axis("step"), y, legend=len(series) > 1)


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _drawn(draw: Callable[[Axes], None], title: str, x: Axis, y: Axis, *, legend: bool) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_style(title)):
        figure = Figure(figsize=(5.2, 3.5), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(title, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.15, color=_INK)
        axes.set_axisbelow(True)
        _set(axes, x, "x")
        _set(axes, y, "y")
        if legend:
            figure.legend(loc="outside lower center", ncols=4, frameon=False)  # never over the plot
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    return _inline(buffer.getvalue(), title)


def _style(title: str) -> dict[Any, Any]:
    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    sizes = ("font.size", "axes.titlesize", "axes.labelsize", "legend.fontsize")
    return {
        **dict.fromkeys(ink, _INK),
        **dict.fromkeys(sizes, _FONT),
        "axes.titleweight": "bold",
        "svg.fonttype": "none",
        "svg.hashsalt": title,  # equal plots are equal text
        "text.parse_math": False,  # a name may hold dollar signs
    }


def _set(axes: Axes, axis: Axis, side: str) -> None:
    from matplotlib.ticker import PercentFormatter

    getattr(axes, f"set_{side}label")(axis.label)
    if axis.log:
        getattr(axes, f"set_{side}scale")("log")
    if axis.ends is not None:
        getattr(axes, f"set_{side}lim")(*axis.ends)
    if axis.percent:
        getattr(axes, f"{side}axis").set_major_formatter(PercentFormatter(1.0))


def _inline(svg: str, title: str) -> str:
    """The SVG without the parts that only a file needs and without ids that would clash on a page, and as
    wide as there is room."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace(_INK, "currentColor")
    described = f'<svg role="img" aria-label="{html.escape(title)}" style="width:100%;height:auto" '
    opening, rest = svg.split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    return described + opening.removeprefix("<svg ") + ">" + rest
