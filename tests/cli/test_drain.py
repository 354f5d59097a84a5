"""SIGTERM: what is open ends, nothing new begins, and whoever starts again goes on to the same bits."""

from __future__ import annotations

import http.client
import json
import math
import signal
import time
from pathlib import Path

import pytest

from atoll.cli.drain import Drain, Stop
from atoll.cli.guard import Stopped
from atoll.store.runs import Store
from atoll.types import Event
from tests.deploy.test_machines import Machine, digests, machines, port, simulated  # noqa: F401  # a fixture

PATIENCE_S = 240.0


def test_sigterm_drains_and_its_time_ends() -> None:
    told, drain = list[str](), Drain(0.2, "join again to go on")
    with drain.listening(told.append):
        assert not drain.asked
        signal.raise_signal(signal.SIGTERM)
        assert (drain.asked, drain.over) == (True, False)
        with pytest.raises(Stopped, match=r"more than the 0.2 s of --drain-s; join again to go on") as stopped:
            time.sleep(30)
        assert drain.over
    assert stopped.value.code == 143
    assert told == ["draining for up to 0.2 s; a second signal does not wait"]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait(second: signal.Signals) -> None:
    drain = Drain(60.0, "join again to go on")
    with drain.listening(lambda _: None):
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped, match="stopped at once") as stopped:
            signal.raise_signal(second)
    assert stopped.value.code == 143


@pytest.mark.parametrize("at_once", [True, False])
def test_ctrl_c_waits_for_a_safe_place_at_most(at_once: bool) -> None:
    drain = Drain(60.0, "join again to go on", at_once=at_once)
    with drain.listening(lambda _: None):
        if at_once:
            with pytest.raises(Stopped, match="stopped; join again"):
                signal.raise_signal(signal.SIGINT)
        else:
            signal.raise_signal(signal.SIGINT)
        assert drain.over
    assert drain.stopped().code == 130


def test_signals_are_somebody_elses_before_and_after() -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with Drain(1.0, "").listening(lambda _: None):
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


class Asked(Drain):
    """A drain that was asked for, with so much time left."""

    def __init__(self, left_s: float) -> None:
        super().__init__(30.0, "serve the same jobs again to go on")
        self._until = time.monotonic() + left_s


@pytest.mark.parametrize(
    ("left_s", "open", "goes_on"),  # goes on after: an event, a round of eight, the last round, a wait
    [
        (math.inf, False, (True, True, True, True)),
        (60.0, True, (True, False, True, True)),
        (60.0, False, (True, False, True, False)),
        (-1.0, True, (False, False, False, False)),
    ],
)
def test_a_job_ends_at_its_next_safe_place(left_s: float, open: bool, goes_on: tuple[bool, ...]) -> None:
    stop = Stop(Asked(left_s), 8, lambda: open)
    calls = (
        lambda: stop.emit(Event("update", 0)),
        lambda: stop.each_round(3, {}),
        lambda: stop.each_round(8, {}),
        stop.wait,
    )
    for call, passes in zip(calls, goes_on, strict=True):
        if passes:
            call()
        else:
            with pytest.raises(Stopped):
                call()


JOB = """
atoll = 1
seed = 3
rounds = 3

[data]
name = "digits"
clients = 2

[task]
name = "classification"
model = { name = "mlp", inputs = 64, hidden = [16], outputs = 10 }

[local]
name = "sgd"
lr = 0.1
batch_size = 4
epochs = 5

[algorithm]
name = "scaffold"

[evaluation]
every = 3

[sites]
north = ["client-0", "client-1"]
"""


def logged(machine: Machine) -> list[dict[str, object]]:
    """Its lines, each of which is JSON."""
    return [json.loads(line) for line in machine.told]


def rounds(machine: Machine) -> list[object]:
    return [each["round"] for each in logged(machine) if each["event"] == "round"]


def asked(machine: Machine, path: str) -> tuple[int, str]:
    at = next(str(each["message"]) for each in logged(machine) if "metrics and health" in str(each["message"]))
    asking = http.client.HTTPConnection(at.rpartition("/")[2], timeout=30)
    asking.request("GET", path)
    answer = asking.getresponse()
    return answer.status, answer.read().decode()


def training(machine: Machine) -> None:
    """Until a client of it trains."""
    ends_s = time.monotonic() + PATIENCE_S
    while 'atoll_clients{doing="training",job="job"} 1.0' not in asked(machine, "/metrics")[1]:
        assert time.monotonic() < ends_s, "".join(machine.told)
        time.sleep(0.02)


@pytest.mark.slow
def test_a_coordinator_and_a_site_drain_and_go_on(tmp_path: Path, machines: list[Machine]) -> None:  # noqa: F811
    pytest.importorskip("prometheus_client")
    (tmp_path / "job.toml").write_text(JOB)
    at, told = f"127.0.0.1:{port()}", ["--log-format", "json", "--ops", "127.0.0.1:0"]
    serve = ["serve", "job.toml", "--listen", at, "--runs", "runs", "--insecure-loopback", *told]
    join = ["join", at, "--site", "north", "--insecure-loopback", "--jobs", "1", *told]
    machines += [coordinator := Machine(tmp_path, *serve), north := Machine(tmp_path, *join)]
    coordinator.wait_for('"event": "round"')
    training(coordinator)
    before = rounds(coordinator)
    assert asked(coordinator, "/readyz") == (200, "ok\n")
    coordinator.process.send_signal(signal.SIGTERM)
    coordinator.wait_for('"event": "drain"')
    status = asked(coordinator, "/readyz")
    assert coordinator.ended() == 143, "".join(coordinator.told)
    assert status == (503, "draining: no new round begins\n")
    assert rounds(coordinator) == [*before, len(before) + 1]  # the open round ended, and no other began
    with Store(tmp_path / "runs") as store:
        assert (store.list()[0].status, store.list()[0].rounds_done) == ("interrupted", len(before) + 1)
    machines.append(coordinator := Machine(tmp_path, *serve))
    coordinator.wait_for("metrics and health")
    training(coordinator)
    north.process.send_signal(signal.SIGTERM)
    assert north.ended() == 143, "".join(north.told)
    (drained,) = [i for i, each in enumerate(logged(north)) if each["event"] == "drain"]
    after = [each for each in logged(north)[drained:] if each["event"] == "answered"]
    assert [(each["level"], each["work"]) for each in after] == [("info", "train")]  # what was in hand, and nothing else
    assert not list((tmp_path / "north" / "link" / "outbox").glob("*.json"))  # it was acknowledged
    machines.append(north := Machine(tmp_path, *join))
    assert [coordinator.ended(), north.ended()] == [0, 0], "".join(coordinator.told + north.told)
    assert {"listening", "run", "round", "reduced", "model"} <= {str(each["event"]) for each in logged(coordinator)}
    assert digests(tmp_path / "runs", "job") == simulated(tmp_path, "job")
