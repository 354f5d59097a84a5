"""Runs side by side: the figures, the differences, the page."""

from __future__ import annotations

import dataclasses
import re

import pytest

from atoll.errors import ConfigError
from atoll.report.comparison import differing, render_comparison, summary_rows, titles
from atoll.store.record import Point, Record
from tests.report.synthetic import record
from tests.report.test_page import HOSTILE, Reader, bare


def run(id: str, loss: float, **changes: object) -> Record:
    points = (
        Point(0, "baseline", None, "loss", 4.0, 1.0),
        Point(0, "train", "north", "bytes_up", 1000.0, 2.0),
        Point(0, "evaluate", None, "loss", loss, 3.0),
    )
    return bare(**({"id": id, "name": id, "series": points} | changes))


def test_the_page_is_closed_and_balanced_whatever_stands_in_it() -> None:
    made = [
        record(),
        record(seed=8, name=HOSTILE, accuracy=False),
        bare(id="empty", name="empty"),
        record(seed=9, status="failed"),
    ]
    read = Reader(render_comparison(made))
    assert {"script", "img", "iframe", "link"}.isdisjoint(tag for tag, _ in read.elements)
    ids = [a["id"] for _, a in read.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert "<script>alert(1)</script>" in read.text


def test_the_best_is_named_and_marked() -> None:
    page = render_comparison([run("a", 2.0), run("b", 1.5)])
    assert "The best loss at the end is 1.5, of b." in page
    assert '<td class="best">1.5<span class="hidden"> (best)</span></td>' in page
    assert page.count('class="best"') == 2  # the last and the lowest loss; time and bytes are the same in both


def test_loss_is_set_against_rounds_time_and_bytes() -> None:
    page = render_comparison([run("a", 2.0), run("b", 1.5)])
    for against in ("rounds", "time", "bytes sent"):
        assert f"Loss against {against}" in page


def test_only_what_differs_is_listed() -> None:
    a = run(
        "a", 2.0, config={"data": {"name": "digits", "alpha": 0.1}, "transforms": [{"name": "clip"}]}, versions={"torch": "2.6"}
    )
    b = run("b", 2.0, config={"data": {"name": "digits", "alpha": 0.5}}, seed=1, versions={"torch": "2.6"})
    assert differing([a, b]).rows == [["seed", "0", "1"], ["data.alpha", "0.1", "0.5"], ["transforms.0.name", "clip", "–"]]
    assert differing([a, dataclasses.replace(a, id="c")]).rows == []


def test_rows_for_the_terminal_have_the_same_keys() -> None:
    rows = summary_rows([run("a", 2.0), bare(id="empty", status="created")])
    assert rows[0] == {"run": "a", "status": "finished", "rounds": "1/2", "time": "3 s", "down": "–", "up": "1 kB"}
    assert rows[1].keys() == rows[0].keys()
    both = summary_rows([run("a", 2.0), run("b", 1.5)])
    assert [row["loss"] for row in both] == ["2", "1.5"]


def test_runs_of_one_name_are_told_apart_by_their_ids() -> None:
    assert titles([run("a-1", 1.0, name="a"), run("a-2", 1.0, name="a"), run("b-1", 1.0, name="b")]) == ["a-1", "a-2", "b"]


def test_no_runs_is_an_error_and_many_are_not() -> None:
    with pytest.raises(ConfigError, match="one run at least"):
        render_comparison([])
    Reader(render_comparison([run(f"r{i}", 1.0 + i / 10) for i in range(20)]))


def test_bytes_of_different_orders_are_drawn_on_a_logarithmic_axis() -> None:
    def page(times: float) -> str:
        def series(each: float) -> tuple[Point, ...]:
            sent = [Point(i, "train", "north", "bytes_up", each, 2.0 + i) for i in range(3)]
            return (*sent, *(Point(i, "evaluate", None, "loss", 3.0 - i, 2.5 + i) for i in range(3)))

        return render_comparison([run("a", 1.0, series=series(1e6 * times)), run("b", 1.0, series=series(1e6))])

    decades = {"1", "10", "100"}  # MB
    assert decades <= set(re.findall(r">([\d,.]+)</text>", page(200.0)))
    assert not decades <= set(re.findall(r">([\d,.]+)</text>", page(2.0)))
