"""Two levels over real sockets in one process: a coordinator, a relay with two sites, and a site of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections import ChainMap, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from atoll.deploy.brief import brief_of
from atoll.deploy.coordinator import coordinate, opened
from atoll.deploy.regions import region as regions
from atoll.deploy.regions.region import Region, read_region
from atoll.deploy.regions.regional import Part, Told
from atoll.deploy.regions.relay import Relay
from atoll.deploy.site import Site
from atoll.engines.serial import serial
from atoll.errors import ConfigError, JobError
from atoll.flight import Flight
from atoll.interfaces import Engine
from atoll.job.build import build, data_of
from atoll.job.check import check
from atoll.job.text import parse
from atoll.remote.link import Link
from atoll.remote.values import Invited, Place, Progress
from atoll.round import Shell, ask
from atoll.store.journal import Ephemeral
from atoll.store.memories import Kept
from atoll.store.runs import Store
from atoll.types import Answer, Assignment, ClientId, Event, Failure, Local, Update
from tests.deploy.jobs import DIGITS
from tests.remote.ends import hub_at, link_to, until

TWO = """
[sites]
relay = ["coast"]
south = ["client-3", "client-4"]

[regions]
coast = 3
"""
REGION = """
region = 1
patience_s = {patience_s}
min_updates = {min_updates}

[sites]
harbour = ["client-0", "client-1"]
island = ["client-2"]
"""
TOP_K = '[[transforms]]\nname = "feedback"\naround = [{ name = "top_k", fraction = 0.1 }]\n'
COAST = ClientId("coast")
Params = Mapping[str, torch.Tensor]


def region_of(min_updates: int = 2, patience_s: float = 60.0) -> Region:
    return read_region(REGION.format(min_updates=min_updates, patience_s=patience_s))


class Watching:
    """A sink."""

    def __init__(self) -> None:
        self.events = list[Event]()

    def emit(self, event: Event) -> None:
        self.events.append(event)


@contextlib.contextmanager
def running(*programs: Any) -> Iterator[Callable[[], None]]:
    """Each program serves in a thread until the block ends; what is given says that all of them still do."""
    over, wrong = threading.Event(), list[BaseException]()

    def serve(program: Any) -> None:
        try:
            program.serve(over.is_set, 0.05)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=serve, args=(each,), daemon=True) for each in programs]
    for thread in threads:
        thread.start()

    def alive() -> None:
        if wrong:
            raise wrong[0]
        assert all(thread.is_alive() for thread in threads), "a program has ended"

    try:
        yield alive
    finally:
        over.set()
        for thread in threads:
            thread.join(30)


def deployed(
    folder: Path, text: str, region: Region, absent: Sequence[str] = (), broken: str = "", sink: Watching | None = None
) -> Params:
    """The model that two levels end with."""
    document = parse(text)
    job = check(document)
    with contextlib.ExitStack() as stack:
        above, below = (stack.enter_context(hub_at(folder / name)) for name in ("above", "below"))
        up = stack.enter_context(link_to(above.address, folder / "relay" / "link", "relay"))
        relay = Relay(up, below, region, folder / "relay")
        stack.callback(relay.close)
        programs: list[Any] = [relay]
        for name, hub in (("harbour", below), ("island", below), ("south", above)):
            if name not in absent:
                link = stack.enter_context(link_to(hub.address, folder / name / "link", name))
                programs.append(Site(Broken(link) if name == broken else link, folder / name))  # type: ignore[arg-type]
        alive = stack.enter_context(running(*programs))
        store = stack.enter_context(Store(folder / "runs"))
        with opened(store, "job", document.values, job) as run:
            outcome = coordinate(above, job, document.values, run, [sink] if sink else [], wait=alive)
        until(lambda: all(each.ended for each in programs), "not everybody heard that the job has ended")
    return dict(outcome.result.params)


class Broken:
    """A link of a site whose every answer is a failure."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def answer(self, job: str, answer: Answer) -> None:
        self._link.answer(job, Failure(answer.round, answer.client, answer.work, "error", "its disk is gone"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)


class TwoLevels:
    """The engine of a simulation of both levels: a region's answer is made as a relay makes it, over `serial`."""

    def __init__(self, part: Part, region: Region, locals_: Mapping[str, Local[Any]], everybody: Any) -> None:
        self._part, self._region, self._queue = part, region, deque[Assignment]()
        self._below, self._direct = serial(locals_, everybody, Kept()), serial(locals_, everybody, Kept())
        self._memories = Kept()

    def available(self, clients: Sequence[ClientId]) -> Sequence[ClientId]:
        return clients

    def submit(self, assignments: Iterable[Assignment]) -> None:
        for each in assignments:
            self._queue.append(each) if each.client == COAST else self._direct.submit([each])

    def results(self, timeout_s: float) -> Iterator[Answer]:
        yield from self._direct.results(timeout_s)
        while self._queue:
            yield self._mean(self._queue.popleft())

    def _mean(self, given: Assignment) -> Update:
        members, policy = sorted(self._region.sites), self._region.policy
        request = regions.asked(given, members, self._part.links, self._part.like.get(given.work))
        flight, shell = Flight(policy, self._below), Shell(self._below, Ephemeral(), Watching())
        reduced = ask(request, given.round, policy, flight, shell, given.seed)
        update, memory = regions.spoken(given, reduced, self._part.links, self._memories.get(COAST), self._part.payload)
        self._memories.propose(*_of(given), memory)
        return update

    def acknowledge(self, update: Update) -> None:
        self._memories.commit(*_of(update)) if update.client == COAST else self._direct.acknowledge(update)

    def __getattr__(self, name: str) -> Any:  # refuse, cancel, started, now, close
        return getattr(self._direct, name)


def _of(x: Assignment | Update) -> tuple[ClientId, int, str]:
    return x.client, x.round, x.work


def simulated(text: str, region: Region) -> Params:
    """Both levels in this thread."""
    job = check(parse(text))
    names = [ClientId(client) for clients in job.sites.values() for client in clients]
    part = Part(Invited("job", (COAST,), brief_of(parse(text).values, names)), region)
    data = data_of(job)
    federation = build(job, data._replace(clients={name: {} for name in names}))

    def engine(locals_: Mapping[str, Local[Any]], clients: Any, memories: Any) -> Engine:
        return TwoLevels(part, region, locals_, ChainMap(data.clients, clients))  # type: ignore[arg-type, return-value]

    return dict(dataclasses.replace(federation, engine=engine).run(job.rounds).params)


def flat(text: str) -> Params:
    job = check(parse(text))
    return dict(build(job).run(job.rounds).params)


@pytest.mark.parametrize(("algorithm", "more"), [("scaffold", ""), ("fedavg", TOP_K)])
def test_two_levels_over_a_network_give_the_bits_of_two_levels_in_one_thread(tmp_path: Path, algorithm: str, more: str) -> None:
    text = DIGITS.format(algorithm=algorithm, rounds=3) + more + TWO
    found, wanted = deployed(tmp_path, text, region_of()), simulated(text, region_of())
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedadam", "scaffold", "feddyn", "fednova", "qfedavg", "mimelite"])
def test_two_levels_are_one_but_for_rounding(algorithm: str) -> None:
    """Each client's examples in one batch, so that the seeds, which differ, decide nothing."""
    text = DIGITS.format(algorithm=algorithm, rounds=3).replace("lr = 0.1", "lr = 0.1\nbatch_size = 2000\nepochs = 2")
    twice, once = simulated(text + TWO, region_of()), flat(text)
    assert all(torch.allclose(twice[name], once[name], rtol=0, atol=1e-6) for name in once)


def failure_of(sink: Watching) -> str:
    (failed,) = [event for event in sink.events if event.kind == "failure"]
    assert (failed.client, failed.work) == (COAST, "train")
    return failed.text


def test_a_region_that_cant_close_is_one_failure_and_nobody_there_remembers_the_round(tmp_path: Path) -> None:
    """Two of three answer and the third fails: the job goes on without the region, whose clients keep no control variate."""
    sink, text = Watching(), DIGITS.format(algorithm="scaffold", rounds=1) + TWO
    deployed(tmp_path, text, region_of(min_updates=3), broken="island", sink=sink)
    told = failure_of(sink)
    assert "in the region coast, round 1, 'train': 2 of 3 clients answered, and the policy's min_updates is 3" in told
    assert "client client-2 failed (error: its disk is gone)" in told
    assert list((tmp_path / "harbour" / "memory").rglob("*")), "it proposed one"
    assert not list((tmp_path / "harbour").rglob("committed"))
    assert len(list((tmp_path / "south").rglob("committed"))) == 2


def test_a_region_moves_above_as_its_clients_do() -> None:
    """Three asked: one heard, one at step 7 of 10, one at other work."""
    told = list[tuple[int, int]]()
    seen = {
        ClientId("b"): Progress("training", 7, 10, place=Place(4, ClientId("b"), "train")),
        ClientId("c"): Progress("training", 9, 10, place=Place(3, ClientId("c"), "measure")),
    }
    hub = SimpleNamespace(progress=lambda job: seen)
    line = SimpleNamespace(say=lambda job, place, step, steps: told.append((step, steps)))
    members = [ClientId(name) for name in "abc"]
    sink = Told(line, hub, "job", Place(4, COAST, "train"), members, lambda *_, **__: None)  # type: ignore[arg-type]
    sink.emit(Event("update", 4, "train", members[0]))
    assert told == [(170, 300)]


def test_a_region_where_nobody_is_says_so_in_time(tmp_path: Path) -> None:
    sink, text = Watching(), DIGITS.format(algorithm="fedavg", rounds=1) + TWO
    deployed(tmp_path, text, region_of(patience_s=0.2), absent=["harbour", "island"], sink=sink)
    assert "0 of 3 clients are there, and min_updates is 2; not there: client-0 (its site has not called" in failure_of(sink)


BRIEF = brief_of(parse(DIGITS.format(algorithm="fedavg", rounds=1) + TWO).values, ["coast", "client-3", "client-4"])


@pytest.mark.parametrize(
    ("change", "clients", "says"),
    [
        ("", ["client-3"], "a relay speaks for one client, which the job names under"),
        ("", ["coast", "client-3"], "a relay speaks for one client"),
        ("coast = 4", ["coast"], "has 4 clients, and its relay knows 3: they must agree"),
        ("client-2", ["coast"], "'client-2' is a client in the region 'coast' and one outside"),
    ],
)
def test_a_relay_says_why_it_takes_no_part(change: str, clients: list[str], says: str) -> None:
    text = DIGITS.format(algorithm="fedavg", rounds=1) + TWO.replace("coast = 3", change if "=" in change else "coast = 3")
    population = ["coast", "client-3", "client-4", *([change] if change.startswith("client") else [])]
    with pytest.raises(ConfigError, match=says):
        Part(Invited("job", tuple(map(ClientId, clients)), brief_of(parse(text).values, population)), region_of())


@pytest.mark.parametrize(
    ("algorithm", "more", "says"),
    [
        ("fedasync", "", "reduced to something other than their mean"),
        ("federated_dropout", "", "depends on the client"),
        ("sparseloco", "", "send what it has encoded itself"),
    ],
)
def test_what_only_the_federation_knows_is_refused_at_both_ends(algorithm: str, more: str, says: str) -> None:
    text = DIGITS.format(algorithm=algorithm, rounds=1) + TWO + more
    if algorithm == "sparseloco":
        text = text.replace('name = "sgd"\nlr = 0.1', 'name = "adamw"\nlr = 0.1\nsteps = 2\nkeep = true')
    names = ["coast", "client-3", "client-4"]
    with pytest.raises(ConfigError, match=says):  # the relay's end
        Part(Invited("job", (COAST,), brief_of(parse(text).values, names)), region_of())
    job = check(parse(text))
    with pytest.raises(ConfigError, match=says):  # the coordinator's
        build(job, data_of(job)._replace(clients={ClientId(name): {} for name in names})).run(1)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ('[broadcast]\nname = "int8"\n', "[broadcast] sends each client the steps that it lacks"),
        (
            '[selection]\nname = "power_of_choice"\nd = 3\n[policy]\nname = "synchronous"\nclients_per_round = 2\n',
            "[selection] power_of",
        ),
        ("[evaluation]\nper_client = true\n", "[evaluation] per_client judges clients one by one"),
        ('[personalise]\nname = "sgd"\n', "[personalise] is judged client by client"),
    ],
)
def test_what_a_job_file_shows_is_refused_by_check(more: str, says: str) -> None:
    with pytest.raises(JobError) as refused:
        check(parse(DIGITS.format(algorithm="fedavg", rounds=1) + more + TWO))
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("two", "says"),
    [
        (TWO.replace('relay = ["coast"]\n', ""), "no site speaks for it"),
        (TWO.replace('["coast"]', '["coast", "client-0"]'), "a relay has one region"),
        (TWO.replace("coast = 3", "coast = 0"), "must be 1 or more"),
    ],
)
def test_a_region_is_that_of_one_site(two: str, says: str) -> None:
    with pytest.raises(JobError, match=says):
        check(parse(DIGITS.format(algorithm="fedavg", rounds=1) + two))


def test_an_algorithm_that_sends_each_client_its_own_is_refused_by_check() -> None:
    text = DIGITS.format(algorithm="feddst", rounds=1) + TWO
    with pytest.raises(JobError, match="feddst sends each client what it lacks"):
        check(parse(text))


def test_a_plain_site_does_not_stand_in_for_a_relay(tmp_path: Path) -> None:
    from atoll.deploy.site import Part as SitePart
    from atoll.store.memories import FileMemories

    with pytest.raises(ConfigError, match="'coast' is a region, for which a relay speaks"):
        SitePart(Invited("job", (COAST,), BRIEF), FileMemories(tmp_path), None)
