"""A coordinator and two sites over real sockets, asked by an operator's machine while they train."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.deploy.coordinator import coordinate, opened
from atoll.deploy.draining import Draining
from atoll.deploy.operations import health, metrics
from atoll.deploy.operations.ops import Ops
from atoll.deploy.site import Site
from atoll.job.check import check
from atoll.job.text import parse
from atoll.remote.hub import Hub
from atoll.remote.values import Acknowledged, Progress, place_of
from atoll.store.runs import Store
from atoll.types import ClientId, Event
from tests.remote.ends import QUICK, answer_of, ask_for, hub_at, link_to, offered, reply, tree_of

parser = pytest.importorskip("prometheus_client.parser")

JOB = """
atoll = 1
seed = 3
rounds = 3

[data]
name = "digits"
clients = 3

[task]
name = "classification"
model = { name = "mlp", inputs = 64, hidden = [16], outputs = 10 }

[local]
name = "sgd"
lr = 0.1

[algorithm]
name = "fedavg"

[sites]
north = ["client-0", "client-1"]
south = ["client-2"]
"""
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def get(port: Ops, path: str) -> tuple[int, str]:
    host, _, number = port.address.rpartition(":")
    asking = http.client.HTTPConnection(host, int(number), timeout=30)
    asking.request("GET", path)
    answer = asking.getresponse()
    return answer.status, answer.read().decode()


def series(text: str) -> Series:
    """Name and labels -> value, as Prometheus reads it."""
    families = parser.text_string_to_metric_families(text)
    return {(each.name, tuple(sorted(each.labels.items()))): each.value for family in families for each in family.samples}


def value(found: Series, name: str, **labels: str) -> float:
    return found[f"atoll_{name}", tuple(sorted(labels.items()))]


class Heard:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.events = list[Event]()

    def emit(self, event: Event) -> None:
        self.events.append(event)


def test_a_live_coordinator_tells_what_it_does(tmp_path: Path) -> None:
    over, draining, document = threading.Event(), threading.Event(), parse(JOB)
    job, heard, during = check(document), Heard(), list[tuple[tuple[int, str], Series]]()
    with (
        hub_at(tmp_path / "hub") as hub,
        link_to(hub.address, tmp_path / "north", "north") as north,
        link_to(hub.address, tmp_path / "south", "south") as south,
        Store(tmp_path / "runs") as store,
        opened(store, "digits", document.values, job) as run,
    ):
        seen = health.OfCoordinator(hub, ["digits"], draining.is_set)
        numbers = metrics.OfCoordinator(hub, tmp_path, seen.runs, draining.is_set)
        port = Ops("127.0.0.1:0", seen, numbers)
        assert get(port, "/healthz") == (200, "ok\n")
        assert get(port, "/readyz") == (503, "being built: digits\n")
        programs = [Site(link, tmp_path / name) for name, link in (("a", north), ("b", south))]
        threads = [threading.Thread(target=each.serve, args=(over.is_set, 0.05), daemon=True) for each in programs]
        for thread in threads:
            thread.start()
        seen.runs["digits"] = run.id
        sinks = [numbers.sink("digits", 0, job.rounds), heard]

        def look(rounds: int, _: Any) -> None:
            during.append((get(port, "/readyz"), series(get(port, "/metrics")[1])))

        coordinate(hub, job, document.values, run, sinks, each_round=look)
        after_text = get(port, "/metrics")[1]
        draining.set()
        assert get(port, "/readyz") == (503, "draining: no new round begins\n")
        assert get(port, "/healthz")[0] == 200
        assert value(series(get(port, "/metrics")[1]), "draining") == 1
        over.set()
        for thread in threads:
            thread.join(30)
        port.close()
    assert [ready for ready, _ in during] == [(200, "ok\n")] * 3
    for done, (_, found) in enumerate(during, 1):
        assert value(found, "rounds_total", job="digits") == value(found, "rounds_done", job="digits") == done
        assert value(found, "sites_online") == 2
        assert sum(value(found, "clients", job="digits", doing=doing) for doing in ("idle", "answered", "waiting")) <= 3
        assert sum(x for (name, _), x in found.items() if name == "atoll_clients") == 3
        assert value(found, "draining") == 0
    after = series(after_text)
    assert value(after, "updates_total", job="digits") == 9  # three clients in three rounds; what is held out is no client's
    for direction in ("up", "down"):
        spent = sum(event.metrics.get(f"bytes_{direction}", 0.0) for event in heard.events if event.kind == "update")
        assert value(after, "bytes_total", job="digits", direction=direction) == spent > 0
    assert value(after, "round_seconds_count", job="digits") == 3
    (*_, last) = [event for event in heard.events if event.kind == "round"]
    assert value(after, "round_seconds_sum", job="digits") == pytest.approx(last.metrics["clock_s"])
    assert {x for (name, _), x in after.items() if name == "atoll_failures_total"} == {0.0}
    assert value(after, "rounds_planned", job="digits") == 3
    assert after["process_resident_memory_bytes", ()] > 0
    for secret in ("client-", "north", "south", str(tmp_path), run.id):
        assert secret not in after_text


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[tuple[Hub, metrics.OfCoordinator]]:
    with hub_at(tmp_path / "hub") as hub:
        yield hub, metrics.OfCoordinator(hub, tmp_path, {"a": "a-1"}, lambda: False)


def test_events_are_counted_by_job_and_kind(idle: tuple[Hub, metrics.OfCoordinator]) -> None:
    _, numbers = idle
    a, b = numbers.sink("a", 4, 9), numbers.sink("b", 0, 2)
    north, held_out = ClientId("north"), ClientId("held-out/0")
    cost = {"bytes_up": 10.0, "bytes_down": 30.0}
    a.emit(Event("update", 4, "train", north, cost))
    a.emit(Event("update", 4, "evaluate", held_out, {}))
    a.emit(Event("failure", 4, "train", north, cost, "lost: its site has been offline for 300 s"))
    a.emit(Event("failure", 4, "train", north, {}, "made up by a site: x"))
    a.emit(Event("late", 4, "train", north, cost, "from round 2"))
    a.emit(Event("round", 4, metrics={"clock_s": 100.0}))  # cut in two by a restart: its seconds are not known
    a.emit(Event("round", 5, metrics={"clock_s": 107.0}))
    b.emit(Event("round", 0, metrics={"clock_s": 2.0}))
    found = series(numbers.text().decode())
    assert value(found, "updates_total", job="a") == 1
    assert value(found, "updates_total", job="b") == 0
    assert value(found, "failures_total", job="a", kind="lost") == value(found, "failures_total", job="a", kind="other") == 1
    assert value(found, "late_updates_total", job="a") == 1
    assert value(found, "bytes_total", job="a", direction="up") == 30
    assert value(found, "bytes_total", job="a", direction="down") == 90
    assert (value(found, "rounds_total", job="a"), value(found, "rounds_done", job="a")) == (2, 6)
    assert (value(found, "round_seconds_count", job="a"), value(found, "round_seconds_sum", job="a")) == (1, 7.0)
    assert (value(found, "round_seconds_count", job="b"), value(found, "round_seconds_sum", job="b")) == (1, 2.0)


def test_the_number_of_series_does_not_grow_with_clients_and_kinds(idle: tuple[Hub, metrics.OfCoordinator]) -> None:
    hub, numbers = idle
    sink = numbers.sink("a", 0, 9)
    sink.emit(Event("update", 0, "train", ClientId("north"), {"bytes_up": 1.0}))
    before = len(series(numbers.text().decode()))
    hub.open("a-1", {ClientId(f"client-{i}"): f"site-{i}" for i in range(50)})
    for i in range(50):
        sink.emit(Event("update", 0, f"work-{i}", ClientId(f"client-{i}"), {"bytes_up": 1.0, f"metric-{i}": 1.0}))
        sink.emit(Event("failure", 0, "train", ClientId(f"client-{i}"), {}, f"kind-{i}: why"))
    found = series(numbers.text().decode())
    assert len(found) == before
    assert value(found, "clients", job="a", doing="offline") == 50


class Transferring:
    """A hub in the middle of three transfers."""

    def sites(self) -> dict[str, float]:
        return {"north": 0.0}

    def progress(self, job: str) -> dict[ClientId, Progress]:
        at = [Progress("fetching", 300, 1000), Progress("fetching", 0, 5), Progress("pushing", 1, 8), Progress("training", 3, 9)]
        return {ClientId(f"client-{i}"): each for i, each in enumerate(at)}


def test_transfers_show_what_is_left_of_them(tmp_path: Path) -> None:
    numbers = metrics.OfCoordinator(Transferring(), tmp_path, {"a": "a-1"}, lambda: False)  # type: ignore[arg-type]
    found = series(numbers.text().decode())
    for direction, under_way, left in (("down", 2, 705), ("up", 1, 7)):
        assert value(found, "transfers", job="a", direction=direction) == under_way
        assert value(found, "transfer_left_bytes", job="a", direction=direction) == left
    assert value(found, "clients", job="a", doing="training") == 1


def test_a_hub_whose_thread_stands_still_is_not_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "TURN_S", 0.2)
    with hub_at(tmp_path / "hub") as hub:
        seen = health.OfCoordinator(hub, [], lambda: False)
        assert seen.alive() == seen.ready() == ""
        standing = threading.Event()
        hub._loop.soon(lambda: standing.wait(30))
        assert "does not turn" in seen.alive()
        assert "does not turn" in seen.ready()
        standing.set()
        deadline_s = time.monotonic() + 30
        while seen.alive() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert seen.alive() == ""
        monkeypatch.setattr(health, "SILENT_S", 0.0)
        assert "the main thread has been silent" in seen.alive()


def test_a_draining_site_takes_up_nothing_and_settles_what_it_has(tmp_path: Path) -> None:
    draining, answered = threading.Event(), list[tuple[str, bool]]()
    with hub_at(tmp_path / "hub") as hub, link_to(hub.address, tmp_path / "north") as link:
        line = Draining(link, draining.is_set, lambda kind, took_s: answered.append((kind, took_s is not None)))
        seen, numbers = health.OfSite(link, draining.is_set), metrics.OfSite(link, tmp_path, draining.is_set)
        hub.open("job", {ClientId("north"): "north", ClientId("more"): "north"})
        hub.offer("job", [ask_for(tree_of(10))])
        assignment = offered(line)  # type: ignore[arg-type]  # a line is all that it needs
        assert seen.ready() == ""
        draining.set()
        hub.offer("job", [ask_for(tree_of(10), ClientId("more"))])
        assert "draining" in seen.ready()
        line.answer("job", reply(assignment))
        assert not line.done  # the coordinator has not settled it yet
        assert value(series(numbers.text().decode()), "site_outbox") == 1
        update = answer_of(hub, "job")
        hub.acknowledge("job", update)  # type: ignore[arg-type]
        came, deadline_s = list[object](), time.monotonic() + 30
        while link.outbox() and time.monotonic() < deadline_s:
            came += line.events(0.05)
        assert came == [Acknowledged("job", place_of(assignment))]  # and no offer
        assert line.done
        assert answered == [("update", True)]
        assert hub.progress("job")[ClientId("more")].doing != "answered"
    with link_to(hub.address, tmp_path / "south", limits=QUICK) as alone:
        assert Draining(alone, lambda: True).done  # nobody is there to settle anything with
        assert "not connected" in health.OfSite(alone, lambda: False).ready()


def test_a_sites_numbers_name_no_job_and_no_client(tmp_path: Path) -> None:
    with hub_at(tmp_path / "hub") as hub, link_to(hub.address, tmp_path / "north") as link:
        numbers = metrics.OfSite(link, tmp_path, lambda: False)
        line = Draining(link, lambda: False, numbers.answered)
        hub.open("secret-job", {ClientId("secret-client"): "north"})
        hub.offer("secret-job", [ask_for(tree_of(10), ClientId("secret-client"))])
        line.answer("secret-job", reply(offered(line)))  # type: ignore[arg-type]
        text = numbers.text().decode()
    found = series(text)
    assert value(found, "site_answers_total", kind="update") == value(found, "site_work_seconds_count") == 1
    assert value(found, "site_answers_total", kind="failure") == 0
    assert value(found, "site_connected") == 1
    assert "secret" not in text
