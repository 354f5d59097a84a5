"""Fleets by the numbers that are published of real ones; files with what may be wrong in them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from atoll.errors import ConfigError, DataError
from atoll.fleets import phones as module
from atoll.fleets.draws import keys, normal, uniform
from atoll.fleets.energy import handset, said, workstation
from atoll.fleets.fleet import Fleet, Spent, spent
from atoll.fleets.phones import DAY_S, phones
from atoll.fleets.steady import lognormal
from atoll.fleets.steady import uniform as alike
from atoll.fleets.trace import trace
from atoll.types import ClientId

CLIENTS = [ClientId(f"client-{i:04d}") for i in range(3000)]


def test_draws_are_uniform_normal_and_apart() -> None:
    key = keys(CLIENTS, 0)
    draws = [uniform(key, 1), uniform(key, 2), uniform(keys(CLIENTS, 1), 1), uniform(key, 1, 2), uniform(key, 2, 1)]
    for draw in draws:
        assert draw.min() > 0
        assert draw.max() < 1
        assert draw.mean() == pytest.approx(0.5, abs=0.02)
        assert np.quantile(draw, [0.1, 0.9]) == pytest.approx([0.1, 0.9], abs=0.02)
    assert np.abs(np.corrcoef(draws) - np.eye(len(draws))).max() < 0.06
    assert (normal(key, 3).mean(), normal(key, 3).std()) == pytest.approx((0.0, 1.0), abs=0.05)


def test_a_draw_does_not_depend_on_who_else_is_asked() -> None:
    many, cycles = keys(CLIENTS, 0), np.arange(-3, 4)[:, None]
    one = keys(CLIENTS[7:8], 0)
    assert uniform(many, 1, cycles)[:, 7].tolist() == uniform(one, 1, cycles)[:, 0].tolist()
    assert uniform(one, 1, -2)[0] == uniform(one, 1, cycles)[1, 0]


@pytest.mark.parametrize(
    ("field", "median", "sigma", "near"),
    [("example_s", 0.172, 0.69, {5: 0.059, 95: 0.572}), ("down", 2.5e6, 0.47, {}), ("up", 7.5e5, 0.68, {})],
)
def test_speeds_of_phones(field: str, median: float, sigma: float, near: dict[int, float]) -> None:
    """978 phones: P5/50/95 = 59/172/572 ms; links lognormal with sigma 0.47 down and 0.68 up."""
    fleet = phones(seed=2)
    values = np.array([getattr(fleet.device(client), field) for client in CLIENTS])
    assert np.median(values) == pytest.approx(median, rel=0.06)
    assert np.log(values).std() == pytest.approx(sigma, rel=0.05)
    for percentile, published in near.items():
        assert np.percentile(values, percentile) == pytest.approx(published, rel=0.15)


def online_hours(fleet: Fleet, hours: range) -> np.ndarray:
    """(clients, hours): who is online at each full hour."""
    found = []
    for hour in hours:
        there = set(fleet.online(CLIENTS, hour * 3600.0))
        found.append([client in there for client in CLIENTS])
    return np.array(found).T


def test_phones_are_online_as_those_that_were_measured() -> None:
    """Mean 9.5 %, median 5.5 %, P75 13 %, P95 33 % of the time; from the best hour to the worst 2.1 times as many."""
    begin, end = (np.concatenate(parts, axis=1) for parts in zip(*_spans(80), strict=True))
    share = (end - begin).sum(axis=1) / (DAY_S * 80)
    assert share.mean() == pytest.approx(0.095, rel=0.08)
    assert np.percentile(share, [50, 75, 95]) == pytest.approx([0.055, 0.13, 0.33], rel=0.15)
    by_hour = online_hours(phones(seed=1), range(24)).mean(axis=0)
    assert by_hour.max() / by_hour.min() == pytest.approx(2.1, rel=0.25)
    assert by_hour.mean() == pytest.approx(0.095, rel=0.1)


def _spans(days: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(begin, end) of the sessions that begin within so many days, (clients, cycles); those that don't have no length."""
    spans, key, seen, found = module.sessions(DAY_S / 2.7, 0.0), keys(CLIENTS, 0), np.full(len(CLIENTS), -math.inf), []
    for hour in range(0, days * 24):
        if hour % 3:
            continue
        for begin, end in zip(*spans(key, hour * 3600.0), strict=True):
            new = (begin > seen) & (begin >= 0) & (begin < days * DAY_S) & (begin <= hour * 3600.0)
            found.append((np.where(new, begin, 0.0)[:, None], np.where(new, end, 0.0)[:, None]))
            seen = np.where(new, begin, seen)
    return found


def test_sessions_of_phones() -> None:
    """2.7 a day in the median; one of each device: log length of mean 5.06 and sigma 2.59."""
    begin, end = (np.concatenate(parts, axis=1) for parts in zip(*_spans(20), strict=True))
    lengths = end - begin
    assert np.median((lengths > 0).sum(axis=1) / 20) == pytest.approx(2.7, rel=0.1)
    one = np.log([row[row > 0][0] for row in lengths if (row > 0).any()])
    assert one.mean() == pytest.approx(5.06, abs=0.35)
    assert one.std() == pytest.approx(2.59, rel=0.1)


def test_a_session_is_what_online_says() -> None:
    fleet = phones(seed=4)
    for client in CLIENTS[:40]:
        at_s = 0.0
        for _ in range(6):
            begin, end = fleet.session(client, at_s)
            assert begin < end
            assert end > at_s
            for moment, there in ((max(begin, at_s), True), (math.nextafter(end, 0.0), True), (end, False)):
                assert (fleet.online([client], moment) == [client]) == there, f"{client} at {moment}"
            if begin > at_s:
                assert fleet.online([client], math.nextafter(begin, 0.0)) == []
            assert fleet.session(client, (max(begin, at_s) + end) / 2)[1] == end
            at_s = end


def test_who_is_online_does_not_depend_on_who_else_is_asked() -> None:
    fleet = phones(seed=4)
    some, everybody = CLIENTS[::-7], set(fleet.online(CLIENTS, 5e4))
    assert fleet.online(some, 5e4) == [c for c in some if c in everybody]
    assert fleet.online([], 0.0) == []


def test_a_lognormal_fleet_is_always_there_and_as_wide_as_it_was_asked_to_be() -> None:
    fleet = lognormal(sigma=0.93, example_s=0.02)
    speeds = np.log([fleet.device(client).example_s for client in CLIENTS])
    assert speeds.mean() == pytest.approx(math.log(0.02), abs=0.06)
    assert speeds.std() == pytest.approx(0.93, rel=0.04)
    assert fleet.online(CLIENTS, 1e9) == CLIENTS
    assert fleet.session(CLIENTS[0], 5.0) == (-math.inf, math.inf)
    assert lognormal(seed=1).device(CLIENTS[0]) != lognormal(seed=2).device(CLIENTS[0])


def test_every_constant_is_said() -> None:
    for fleet in (phones(energy=handset(train_w=2.25)), lognormal(energy=handset(train_w=2.25)), alike(energy=handset(2.25))):
        assert "2.25 W computing" in fleet.about
        assert "(simulated)" in fleet.about
    assert said(workstation()).startswith("300 W computing")


def test_costs_add_up() -> None:
    one = spent(handset(), 10.0, 5.0, 2.0, 1e6, 2e6)
    assert one.device_j == 3.0 * 10 + 1.0 * 5 + 0.05 * 2
    assert one.network_j == pytest.approx(0.05 * 3.6e6 * 0.003)
    assert one.co2e_g == pytest.approx(one.energy_j / 3.6e6 * 480)
    assert Spent().plus(one).plus(one) == Spent(2, *(2 * x for x in one[1:]))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: phones(example_s=0.0), "phones example_s = 0.0"),
        (lambda: phones(up_sigma=-1.0), "phones up_sigma = -1.0"),
        (lambda: phones(offline="waits"), "'lost' or 'pauses'"),  # type: ignore[arg-type]
        (lambda: phones(day_over_night=40.0), "day_over_night = 40.0"),
        (lambda: lognormal(sigma=math.nan), "sigma = nan"),
        (lambda: alike(down=-1.0), "uniform down = -1.0"),
        (lambda: handset(idle_w=-1.0), "handset idle_w = -1.0"),
    ],
)
def test_what_can_not_be(make: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()  # type: ignore[operator]


CSV = "client,example_s,down,up,sessions\nnorth,0.5,2e6,1e6,0-60;90-120\nsouth,0.25,1e6,5e5,\n"


def test_a_trace(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    rows = [
        {"client": "north", "example_s": 0.5, "down": 2e6, "up": 1e6, "sessions": [[0, 60], [90, 120]]},
        {"client": "south", "example_s": 0.25, "down": 1e6, "up": 5e5},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    for name in ("a.csv", "a.jsonl"):
        fleet = trace(str(tmp_path / name))
        north, south = ClientId("north"), ClientId("south")
        assert fleet.device(north) == (0.5, 2e6, 1e6)
        assert [fleet.session(north, at) for at in (0.0, 60.0, 100.0)] == [(0, 60), (90, 120), (90, 120)]
        assert fleet.session(north, 120.0)[0] == math.inf
        assert fleet.online([south, north], 70.0) == [south]
        assert {fleet.device(client).example_s for client in CLIENTS[:50]} == {0.5, 0.25}, "others have one of the file's"
        again = trace(str(tmp_path / name), repeat_s=200.0)
        assert [again.session(north, at) for at in (120.0, 410.0, 465.0)] == [(200, 260), (400, 460), (490, 520)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("client,example_s,down\na,1,1\n", "line 1: there is no column 'up'"),
        ("client,example_s,down,up\na,1,1,fast\n", "line 2: up = 'fast': must be a finite number above 0"),
        ("client,example_s,down,up\na,1,1,1\nb,0,1,1\n", "line 3: example_s = '0'"),
        ("client,example_s,down,up\na,1,1,\n", "line 2: up is missing"),
        ("client,example_s,down,up\na,1,1,1\na,1,1,1\n", "line 3: client 'a' was there before"),
        ("client,example_s,down,up,sessions\na,1,1,1,0-5;4-9\n", "line 2: session 4-9"),
        ("client,example_s,down,up,sessions\na,1,1,1,noon\n", r"line 2: sessions has \['noon'\]"),
        ("client,example_s,down,up\n", "has no device"),
    ],
)
def test_a_trace_that_is_wrong(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=says):
        trace(str(file))


def test_a_trace_of_json_that_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    for text, says in (
        ("{", "line 1: '{' is not JSON"),
        ("[1]", "line 1: .* is not an object"),
        ('{"client": "a", "example_s": 1, "down": 1, "up": 1, "sessions": [[3]]}', "line 1: sessions has"),
        ('{"client": "a", "example_s": true, "down": 1, "up": 1}', "example_s = True"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=says):
            trace(str(file))
    with pytest.raises(DataError, match="can't be read"):
        trace(str(tmp_path / "absent.csv"))
    file.write_text('{"client": "a", "example_s": 1, "down": 1, "up": 1, "sessions": [[0, 50]]}')
    with pytest.raises(ConfigError, match="repeat_s = 40"):
        trace(str(file), repeat_s=40.0)
