"""What is read out of a record, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from atoll.report import cost
from atoll.report.facts import Facts, personal, read, round_s, spread, total_bytes
from atoll.store.record import Incident, Point, Record


def facts(*points: Point, incidents: tuple[Incident, ...] = ()) -> Facts:
    return read(Record("a-1", "a", "finished", 0, 2, {}, {}, "", "", None, None, "", "", series=points, incidents=incidents))


def test_the_baseline_is_round_0_and_an_evaluation_belongs_to_the_model_it_measured() -> None:
    found = facts(
        Point(0, "baseline", None, "loss", 4.0, 1.0),
        Point(0, "train", None, "loss", 3.5, 2.0),
        Point(0, "evaluate", None, "loss", 3.0, 2.5),
        Point(1, "evaluate", None, "loss", 2.0, 5.0),
    )
    assert [(at.round, at.value, at.elapsed_s) for at in found.whole["evaluate", "loss"]] == [
        (0, 4.0, 1.0), (1, 3.0, 2.5), (2, 2.0, 5.0),
    ]  # fmt: skip
    assert round_s(found) == {0: 1.0, 1: 1.5, 2: 2.5}
    assert found.rounds == 2
    assert found.judged("loss") == ("evaluate", found.whole["evaluate", "loss"])


def test_what_the_driver_tells_of_a_round_goes_before_what_is_derived() -> None:
    found = facts(
        Point(0, "", None, "train/loss", 3.5, 2.0),
        Point(0, "", None, "seconds", 1.25, 2.0),
        Point(0, "", None, "bytes_up", 70.0, 2.0),
        Point(0, "train", "north", "bytes_up", 50.0, 1.0),
    )
    assert [at.value for at in found.whole["train", "loss"]] == [3.5]
    assert round_s(found) == {1: 1.25}
    assert found.bytes_up == {1: 70.0}


def test_shards_of_the_server_are_no_clients() -> None:
    found = facts(
        Point(0, "baseline", "held-out/0", "loss", 4.0, 1.0),
        Point(0, "train", "north", "loss", 3.5, 2.0),
        Point(0, "evaluate", "held-out/1", "seconds", 0.25, 3.0),
    )
    assert found.clients == ["north"]
    assert found.judged_by_client("loss")[0] == "train"
    assert found.compute_s == {1: {"evaluate": 0.25}}  # though they do cost time


def test_bytes_of_both_directions_add_up() -> None:
    found = facts(
        Point(0, "train", "north", "bytes_down", 100.0, 1.0),
        Point(0, "train", "south", "bytes_down", 100.0, 1.0),
        Point(0, "train", "north", "bytes_up", 10.0, 1.0),
        Point(0, "evaluate_clients", "north", "bytes_down", 5.0, 1.5),
        Point(1, "train", "south", "bytes_up", 20.0, 2.0),
    )
    assert total_bytes(found) == [(1, 215.0), (2, 235.0)]


def told_by(*clients: str, **numbers: float) -> Facts:
    return facts(*(Point(0, "train", client, name, value, 1.0) for client in clients for name, value in numbers.items()))


def test_headers_are_costs_and_stand_beside_the_bytes_that_hold_them() -> None:
    found = told_by("north", "south", loss=2.0, bytes_down=1e3, header_down=1e2, bytes_up=500.0, header_up=80.0, saved_up=7.0)
    assert found.metrics == ["loss"], "a header was drawn as a learning curve"
    assert (found.header_down, found.header_up) == ({1: 200.0}, {1: 160.0})
    plot = next(cost.bytes_(found))
    assert plot.table.columns == ("round", "down", "up", "headers down", "headers up", "down in total", "up in total")
    assert plot.table.rows == [["1", "2 kB", "1 kB", "200 B", "160 B", "2 kB", "1 kB"]]
    assert plot.note


def test_a_record_from_before_headers_were_counted_has_no_column_for_them() -> None:
    plot = next(cost.bytes_(told_by("north", bytes_down=1e3, bytes_up=500.0)))
    assert plot.table.columns == ("round", "down", "up", "down in total", "up in total")
    assert not plot.note


def test_only_training_makes_participation() -> None:
    found = facts(
        Point(0, "train", "north", "loss", 1.0, 1.0),
        Point(0, "evaluate_clients", "south", "loss", 1.0, 1.0),
        Point(1, "train", "south", "age", 1.0, 2.0),
        incidents=(
            Incident(1, "train", "north", "failure", "lost: gone", 2.0),
            Incident(1, "evaluate_clients", "north", "failure", "lost: gone", 2.0),
            Incident(1, "train", "north", "late", "from round 0", 2.0),
        ),
    )
    assert found.heard == {"north": {1}, "south": {2}}
    assert found.failed == {"north": {2: "lost: gone"}}
    assert found.ages == {1: 1}


@pytest.mark.parametrize(("name", "worst"), [("loss", "c"), ("accuracy", "a")])
def test_the_spread_puts_the_worst_first(name: str, worst: str) -> None:
    values = {"a": 1.0, "b": 2.0, "c": 6.0, "d": math.nan}
    found = spread(facts(*(Point(0, "evaluate_clients", c, name, v, 1.0) for c, v in values.items())), name)
    assert found is not None
    assert found.latest[0][0] == worst
    assert len(found.latest) == 3  # what is no number is no place in a ranking
    assert found.median == 2.0
    assert found.deviation == pytest.approx(math.sqrt((4 + 1 + 9) / 3))
    assert found.worst_tenth == values[worst]


def test_fine_tuning_is_compared_with_the_shared_model_client_by_client() -> None:
    points = [Point(1, work, c, "loss", v, 1.0) for work, c, v in
              [("global", "a", 3.0), ("global", "b", 2.0), ("personal", "a", 1.0), ("personal", "b", 1.5)]]  # fmt: skip
    found = personal(facts(*points), "loss")
    assert found is not None
    assert found.latest == [("b", 1.5), ("a", 1.0)]
    assert found.first == {"a": 3.0, "b": 2.0}
    assert facts(*points).heard == {}


def test_an_empty_record_has_empty_facts() -> None:
    found = facts()
    assert (found.rounds, found.clients, found.elapsed_s, found.metrics, round_s(found), total_bytes(found)) == (
        0,
        [],
        0.0,
        [],
        {},
        [],
    )
    assert found.judged("loss") == ("", ())
    assert spread(found, "loss") is None
