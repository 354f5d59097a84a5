"""Virtual time: an engine's laws, the order of landing, sessions and leases, what is not computed, resuming to the same bits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atoll.data.examples import Tensors, batches
from atoll.engines.processes import processes
from atoll.engines.serial import serial
from atoll.engines.virtual import Virtual, examples_read
from atoll.errors import ConfigError
from atoll.fleets.energy import handset
from atoll.fleets.fleet import Device, Fleet, always, everybody
from atoll.fleets.steady import lognormal, uniform
from atoll.interfaces import Engine
from atoll.store.memories import Kept
from atoll.testing.engine import check_engine
from atoll.types import HELD_OUT, Assignment, Batching, ClientId, Examples, Failure, Local, Seen, Tree, Update
from atoll.wire import frame

INSTANT = 1e18  # bytes a second: a frame's 1e-16 s vanish beside a second, so that only what is computed takes time


@pytest.mark.parametrize("ahead", [1, 16])
@pytest.mark.parametrize("inner", [serial, partial(processes, workers=2)], ids=["serial", "processes"])
def test_an_engine_in_virtual_time_obeys_the_laws(inner: Any, ahead: int) -> None:
    def make(locals_: Mapping[str, Local[Any]], clients: Mapping[ClientId, Mapping[str, Examples]], memories: Kept) -> Engine:
        fleet = lognormal(example_s=1e-5, down=1e9, up=1e9)
        return Virtual(inner(locals_, clients, memories), locals_, clients, fleet, ahead=ahead)

    check_engine(make)


def line(seconds: Mapping[str, float], link: float = INSTANT, **changes: Any) -> Fleet:
    """Devices by name: seconds an example, links of so many bytes a second, nobody away unless `changes` says so."""
    fleet = Fleet("line", lambda c: Device(seconds[c], link, link), always, everybody, handset(), "lost", "by hand")
    return fleet._replace(**changes)


class Worked(NamedTuple):
    """An engine over clients with two examples each, and who worked, in their order."""

    engine: Virtual
    worked: list[str]


def filled(value: Any, size_bytes: int) -> Any:
    """The value with one tensor, so long that its frame has so many bytes."""
    beside = frame.size(value._replace(tree={"w": torch.zeros(size_bytes, dtype=torch.uint8)})).header
    full = value._replace(tree={"w": torch.zeros(size_bytes - beside, dtype=torch.uint8)})
    assert frame.size(full).total == size_bytes
    return full


def make(fleet: Fleet, clients: Sequence[str], bytes_up: int = 0, **options: Any) -> Worked:
    """`bytes_up`: of each update's frame; as many as it takes without a tensor if 0."""
    worked: list[str] = []

    def final(assignment: Assignment, carry: Tree, seen: Seen) -> tuple[Update, Tree]:
        worked.append(assignment.client)
        told = {"loss": 1.0, "seconds": 0.5, "examples": 0.0, "steps": 0.0}  # the last three are written, as long, when work ends
        update = Update(assignment.round, assignment.client, assignment.work, {}, 1.0, told)
        return filled(update, bytes_up) if bytes_up else update, {}

    fold: Local[Tree] = Local(lambda a, _: a.tree, lambda carry, _: carry, final)
    locals_ = {"train": fold}
    held = {ClientId(c): {"train": Tensors({"x": torch.zeros(2, 1)})} for c in clients}
    return Worked(Virtual(serial(locals_, held), locals_, held, fleet, **options), worked)


def asked(client: str, sent_s: float = 0.0, bytes_down: int = 0, round: int = 0) -> Assignment:
    assignment = Assignment(round, ClientId(client), "train", {}, 0, sent_s)
    return filled(assignment, bytes_down) if bytes_down else assignment


def test_a_trip_takes_its_download_its_examples_and_its_upload() -> None:
    engine, _ = make(line({"a": 3.0}, link=1e3), ["a"], bytes_up=4000)
    engine.submit([asked("a", bytes_down=2000)])
    (answer,) = engine.results(100.0)
    assert isinstance(answer, Update)
    assert engine.now() == 2.0 + 2 * 3.0 + 4.0
    told = {name: answer.metrics[name] for name in ("seconds", "transfer_s", "wait_s")}
    assert told == {"seconds": 12.0, "transfer_s": 6.0, "wait_s": 0.0}
    device_j = 3.0 * 6 + 1.0 * 6  # watts times seconds: computing, then at the radio
    network_j = 0.05 * 3.6e6 * 6000 / 1e9
    assert answer.metrics["energy_j"] == pytest.approx(device_j + network_j)
    assert answer.metrics["co2e_g"] == pytest.approx((device_j + network_j) / 3.6e6 * 480)
    assert engine.spent.trips == 1
    assert engine.spent.energy_j == pytest.approx(answer.metrics["energy_j"])


def test_answers_land_in_the_order_of_virtual_time_and_the_clock_goes_with_them() -> None:
    engine, worked = make(line({"slow": 5.0, "mid": 2.0, "fast": 1.0}), ["slow", "mid", "fast"], ahead=1)
    engine.submit([asked(c) for c in ("slow", "mid", "fast")])
    landed = []
    for answer in engine.results(9.0):
        landed.append((answer.client, engine.now()))
        if landed == [("fast", 2.0)]:
            engine.submit([asked("fast", sent_s=engine.now(), round=1)])
    assert landed == [("fast", 2.0), ("mid", 4.0), ("fast", 4.0)], "of two at one moment the one of the earlier round is first"
    assert engine.now() == 9.0, "the clock stands where the timeout is"
    assert [a.client for a in engine.results(1.0)] == ["slow"]
    assert engine.now() == 10.0
    assert worked[-1] == "slow"


def test_an_upload_that_is_longer_than_another_trip_is_overtaken() -> None:
    """The size of an update is known only when it is computed: who looked first is not let out before its upload ends."""
    seconds = {"a": 1.0, "b": 1.5}
    fleet = line(seconds, device=lambda c: Device(seconds[c], INSTANT, 1e3 if c == "a" else INSTANT))
    engine, _ = make(fleet, ["a", "b"], bytes_up=10_000)
    engine.submit([asked("a"), asked("b")])
    assert [(a.client, round(engine.now(), 3)) for a in engine.results(100.0)] == [("b", 3.0), ("a", 12.0)]


def test_what_is_cancelled_before_its_turn_is_not_computed_but_its_device_is_charged() -> None:
    names = [f"c{i}" for i in range(20)]
    engine, worked = make(line({c: 1.0 + i for i, c in enumerate(names)}), names, ahead=2)
    engine.submit([asked(c) for c in reversed(names)])
    landed = list(islice(engine.results(1000.0), 3))
    engine.cancel(0, "train")
    assert [a.client for a in landed] == names[:3]
    assert worked == names[:3], "work was computed that nobody waits for"
    assert list(engine.results(1000.0)) == []
    assert engine.now() == 6.0
    assert engine.spent.trips == 20
    assert engine.spent.device_j == pytest.approx(3.0 * (2 + 4 + 6 + 17 * 6)), "the others had computed for 6 s, at 3 W"


def sessions(spans: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, Any]:
    def session(client: ClientId, at_s: float) -> tuple[float, float]:
        return next(((b, e) for b, e in spans[client] if at_s < e), (math.inf, math.inf))

    def online(clients: Sequence[ClientId], at_s: float) -> Sequence[ClientId]:
        return [c for c in clients if session(c, at_s)[0] <= at_s]

    return {"session": session, "online": online}


def test_a_device_that_goes_away_is_lost_when_it_goes() -> None:
    fleet = line({"a": 5.0, "b": 5.0}, **sessions({"a": [(0, 4)], "b": [(20, 40)]}))
    engine, worked = make(fleet, ["a", "b"])
    engine.submit([asked("a"), asked("b")])
    landed = [(a, engine.now()) for a in engine.results(100.0)]
    assert [(a.client, a.kind, at) for a, at in landed if isinstance(a, Failure)] == [("b", "lost", 0.0), ("a", "lost", 4.0)]
    assert "went offline after 4 of 10 s" in str(landed[1][0])
    assert not worked, "lost work was computed"
    assert engine.spent.device_j == pytest.approx(3.0 * 4)


def test_work_that_pauses_goes_on_in_the_next_session() -> None:
    fleet = line({"a": 5.0}, offline="pauses", **sessions({"a": [(0, 4), (20, 23), (50, 90)]}))
    engine, _ = make(fleet, ["a"])
    engine.submit([asked("a")])
    (answer,) = engine.results(100.0)
    assert isinstance(answer, Update)
    assert engine.now() == 53.0, "4 s, 3 s, and the last 3 of 10"
    assert (answer.metrics["seconds"], answer.metrics["wait_s"]) == (53.0, 43.0)


def test_a_device_that_never_comes_back_is_lost_even_where_work_pauses() -> None:
    fleet = line({"a": 5.0}, offline="pauses", **sessions({"a": [(0, 4)]}))
    engine, _ = make(fleet, ["a"])
    engine.submit([asked("a")])
    assert [a.kind for a in engine.results(100.0) if isinstance(a, Failure)] == ["lost"]


def test_a_lease_runs_out_in_virtual_time() -> None:
    engine, worked = make(line({"a": 5.0}), ["a"], lease_s=7.5)
    engine.submit([asked("a", sent_s=0.0)])
    assert [(a.kind, engine.now()) for a in engine.results(100.0) if isinstance(a, Failure)] == [("expired", 7.5)]
    assert not worked


def test_who_is_away_is_not_asked_and_the_clock_waits_for_the_first_to_come() -> None:
    fleet = line({"a": 1.0, "b": 1.0}, **sessions({"a": [(0, 4), (30, 40)], "b": [(2, 5), (20, 21)]}))
    engine, _ = make(fleet, ["a", "b"])
    names = [ClientId("a"), ClientId("b")]
    assert (engine.available(names), engine.now()) == (["a"], 0.0)
    engine.follow(3.0)
    assert (engine.available(names), engine.now()) == (["a", "b"], 3.0)
    engine.follow(10.0)
    assert (engine.available(names), engine.now()) == (["b"], 20.0)
    engine.follow(50.0)
    assert (engine.available(names), engine.now()) == ([], 50.0), "nobody will ever come again"


def test_what_the_server_holds_takes_no_time_and_is_never_lost() -> None:
    shard = f"{HELD_OUT}0"
    engine, _ = make(line({}, **sessions({shard: []})), [shard], clock_s=5.0)
    engine.submit([asked(shard, sent_s=5.0, bytes_down=10_000)])
    (answer,) = engine.results(0.0)
    assert isinstance(answer, Update)
    assert engine.now() == 5.0
    assert "energy_j" not in answer.metrics


@given(
    count=st.integers(0, 30),
    size=st.integers(1, 12) | st.none(),
    epochs=st.integers(1, 3),
    steps=st.integers(1, 20) | st.none(),
)
def test_examples_read_are_those_of_the_batches(count: int, size: int | None, epochs: int, steps: int | None) -> None:
    batching = Batching("train", size, epochs, steps, True)
    read = sum(len(batch["x"]) for batch in batches(Tensors({"x": torch.zeros(count, 1)}), batching, 0))
    assert examples_read(count, batching) == read


@pytest.mark.parametrize("ahead", [0, -1])
def test_an_ahead_below_one_is_refused(ahead: int) -> None:
    with pytest.raises(ConfigError, match="must be 1 or more"):
        make(uniform(), [], ahead=ahead)
