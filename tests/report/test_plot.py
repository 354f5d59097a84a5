"""Drawings: what the page around them relies on."""

from __future__ import annotations

import math
import re
import warnings
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.report.lines import Line, evenly, label, lines, thin
from atoll.report.plot import SERIES, Canvas, draw

SVG = "{http://www.w3.org/2000/svg}"


def drawing(*series: Line, name: str = "a") -> str:
    return draw(name, lambda canvas: lines(canvas, series, "round"))


def test_colours_are_the_page_s_and_text_stays_text() -> None:
    svg = drawing(Line("north", [(0, 2.0), (1, 1.0)], 0), Line("south", [(0, 3.0), (1, 2.0)], 1))
    assert set(re.findall(r"#[0-9a-f]{6}", svg)) == set()
    assert "var(--c1)" in svg
    assert "var(--c2)" in svg
    texts = [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert {"north", "south", "round"} <= set(texts)
    assert "font-family" not in svg


def test_nothing_in_a_drawing_points_outside_it() -> None:
    svg = drawing(Line("a", [(0, 2.0), (1, 1.0)]))
    ids = set(re.findall(r' id="([^"]+)"', svg))
    targets = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
    assert targets == ids
    assert set(re.findall(r'https?://[^"\s]+', svg)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_two_drawings_share_no_id() -> None:
    first, second = (set(re.findall(r' id="([^"]+)"', drawing(Line("x", [(0, 1.0), (1, 2.0)]), name=name))) for name in "ab")
    assert first
    assert not first & second


def test_the_same_drawing_twice_is_the_same_text() -> None:
    assert drawing(Line("x", [(0, 1.0), (1, 2.0)])) == drawing(Line("x", [(0, 1.0), (1, 2.0)]))


def test_every_mark_says_its_value() -> None:
    svg = drawing(Line("north", [(0, 2.0), (1, math.nan), (2, 1.0)]))
    assert [t.text for t in ElementTree.fromstring(svg).iter(f"{SVG}title")] == ["north, 0: 2", "north, 2: 1"]


HOSTILE = [
    "<script>alert(1)</script>", "$\\frac{1}{0}$",
    "a\x00b\x1bc", "_hidden", "", "\ud800", "東京 ☃ مرحبا", "x" * 500, "]]>", "a\nb",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_can_be_drawn(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = drawing(Line(label(name), [(0, 2.0), (1, 1.0)], 0), Line(label("other"), [(0, 1.0), (1, 1.0)], 1))
    assert "<script" not in svg
    texts = [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert label(name) in texts


@pytest.mark.parametrize(
    "points", [[], [(0, 1.0)], [(0, math.nan)], [(0, math.inf), (1, -math.inf)], [(0, 1e300), (1, 1e-300)], [(0, 0.0)] * 3]
)
def test_any_values_can_be_drawn(points: list[tuple[float, float]]) -> None:
    ElementTree.fromstring(drawing(Line("x", points)))


@pytest.mark.parametrize(("values", "scale"), [([1.0, 100.0], "log"), ([1.0, 50.0], "linear"), ([0.0, 100.0], "linear")])
def test_a_wide_range_is_drawn_by_its_logarithm(values: list[float], scale: str) -> None:
    seen = []

    def paint(canvas: Canvas) -> None:
        lines(canvas, [Line("x", list(enumerate(values)))], "round")
        seen.append(canvas.axes.get_yscale())

    svg = draw("x", paint)
    assert seen == [scale]
    assert "mathdefault" not in svg  # a formula, which is not set here


def test_more_series_than_colours_differ_in_their_dashes() -> None:
    svg = drawing(*(Line(f"run {i}", [(0, float(i)), (1, i + 1.0)], i) for i in range(len(SERIES) + 1)))
    assert "stroke-dasharray" in svg


@given(st.lists(st.floats(allow_nan=True), min_size=1, max_size=400), st.integers(4, 60))
def test_thinning_keeps_the_ends_and_the_extremes(values: list[float], most: int) -> None:
    points = [(float(x), y) for x, y in enumerate(values)]
    kept = thin(points, most)
    assert len(kept) <= most + 2
    assert [x for x, _ in kept] == sorted({x for x, _ in kept})
    assert (kept[0][0], kept[-1][0]) == (0.0, len(values) - 1.0)
    finite = [y for y in values if math.isfinite(y)]
    if finite:
        assert {min(finite), max(finite)} <= {y for _, y in kept}


@given(st.integers(0, 500), st.integers(2, 50))
def test_evenly_keeps_order_and_ends(n: int, most: int) -> None:
    kept = evenly(range(n), most)
    assert len(kept) == min(n, most)
    assert kept == sorted(set(kept))
    assert not n or (kept[0], kept[-1]) == (0, n - 1)
