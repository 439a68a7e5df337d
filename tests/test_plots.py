"""Plots: what they draw is in their text, and nothing in it needs the world outside."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from gemel_ray.plots import Axis, Series, bars, curve, lines

LINE = Series("with $ & <", [0.1, 0.5], [0.0, 0.4], [0.2, 0.6], x=[0.0, 1.0])
SHARE = Axis("share <right>", (0, 1), percent=True)


def drawn() -> list[str]:
    two = [LINE, Series("second", [0.3, 0.2], x=[0.0, 1.0])]
    return [
        lines(two, title="a & b", x=SHARE, y=SHARE, diagonal=True, dots=True),
        bars(["never", "once"], two, title="a & b", y=SHARE, x="seen"),
        curve(two, title="a & b", y=Axis("loss", log=True)),
    ]


@pytest.mark.parametrize("svg", drawn(), ids=["lines", "bars", "curve"])
def test_a_plot_is_whole_and_takes_the_colours_of_its_page(svg: str) -> None:
    words = "".join(ElementTree.fromstring(svg).itertext())
    assert "with $ & <" in words
    assert "second" in words
    assert "a & b" in words
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert re.findall(r'(?:href|src)="(?!#)', svg) == []


def test_equal_plots_are_equal_text() -> None:
    assert drawn() == drawn()


def test_two_plots_of_one_page_share_no_id() -> None:
    first = lines([LINE], title="first", x=SHARE, y=SHARE, dots=True)
    second = lines([LINE], title="second", x=SHARE, y=SHARE, dots=True)
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_a_value_that_is_not_known_is_left_out() -> None:
    nan = float("nan")
    series = Series("run", [0.5, nan], [0.4, nan], [0.6, nan], x=[0, 1])
    for svg in (bars(["a", "b"], [series], title="t", y=SHARE), lines([series], title="t", x=SHARE, y=SHARE)):
        assert "nan" not in svg.lower()
