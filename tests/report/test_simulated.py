"""A run in virtual time tells its simulated seconds, joules and grams; one in real time tells none."""

from __future__ import annotations

import dataclasses

import pytest

from atoll.report.comparison import render_comparison
from atoll.report.facts import read, round_s
from atoll.report.page import render
from atoll.store.record import Point, Record


def record(simulated: bool) -> Record:
    points = []
    for round in range(3):
        for client in ("a", "b"):
            told = {"loss": 2.0 - round, "seconds": 40.0, "bytes_down": 1e6, "bytes_up": 1e6}
            if simulated:
                told |= {"transfer_s": 4.0, "wait_s": 0.0, "energy_j": 1800.0, "co2e_g": 0.25}
            points += [Point(round, "train", client, name, value, 0.1 * round) for name, value in told.items()]
        points.append(Point(round, "evaluate", None, "loss", 1.0 / (round + 1), 0.1 * round + 0.05))
        points.append(Point(round, "", None, "clock_s", 50.0 * (round + 1), 0.1 * round + 0.06))
    return Record("r-1", "r", "finished", 0, 3, {}, {}, "", "", None, None, "", "", series=tuple(points))


def test_a_round_lasts_as_long_as_the_virtual_clock_says() -> None:
    facts = read(record(True))
    assert round_s(facts) == {1: 50.0, 2: 50.0, 3: 50.0}
    assert facts.energy_j == {1: 3600.0, 2: 3600.0, 3: 3600.0}
    assert sum(facts.co2e_g.values()) == pytest.approx(1.5)
    real = read(record(False))
    assert not real.simulated_s
    assert max(round_s(real).values()) < 1
    assert facts.metrics == real.metrics == ["loss"], "costs are no qualities of the model"


def test_the_report_says_what_is_simulated() -> None:
    page, real = render(record(True)), render(record(False))
    for text in ("Simulated time", "2 min 30 s", "Simulated energy", "3 Wh", "1.5 g CO2e"):
        assert text in page, text
    assert "imulated" not in real
    assert "CO2e" not in real


def test_a_comparison_plots_against_the_virtual_clock_where_there_is_one() -> None:
    mixed = [dataclasses.replace(record(True), id="a", name="a"), dataclasses.replace(record(False), id="b", name="b")]
    assert "against simulated time" in render_comparison(mixed)
    assert "against simulated time" not in render_comparison(mixed[1:])
