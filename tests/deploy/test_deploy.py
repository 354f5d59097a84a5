"""A coordinator and its sites in one process, with frames between them and no network: the bits are those of a simulation."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from atoll.deploy.brief import brief_of, sites_of
from atoll.deploy.coordinator import coordinate, opened
from atoll.deploy.site import Part, Site
from atoll.errors import ConfigError
from atoll.job.build import build
from atoll.job.check import check
from atoll.job.text import parse
from atoll.remote.values import Acknowledged, Invited, Offered, Place, Refused
from atoll.store.memories import FileMemories
from atoll.store.runs import Store
from atoll.types import Assignment, ClientId, Failure
from tests.deploy.jobs import DIGITS, TWO_SITES
from tests.deploy.wire import End, Wire

JOB = DIGITS + TWO_SITES


def deployed(tmp_path: Path, text: str, own: str = "", data: Any = None) -> dict[str, torch.Tensor]:
    """`own`: what the sites' data is; `data`: as `coordinate` has it."""
    wire, over, here = Wire(), threading.Event(), parse(own) if own else None
    programs = [Site(End(wire, name), tmp_path / name, here) for name in ("north", "south")]  # type: ignore[arg-type]
    sites = [threading.Thread(target=each.serve, args=(over.is_set, 0.05)) for each in programs]
    document = parse(text)
    job = check(document)
    for site in sites:
        site.start()
    try:
        with Store(tmp_path / "runs") as store, opened(store, "job", document.values, job) as run:
            outcome = coordinate(wire, job, document.values, run, wait=lambda: alive(sites), data=data)  # type: ignore[arg-type]
    finally:
        over.set()
        for site in sites:
            site.join(30)
    return dict(outcome.result.params)


def alive(sites: Iterable[threading.Thread]) -> None:
    assert all(site.is_alive() for site in sites), "a site has ended"


def simulated(text: str) -> dict[str, torch.Tensor]:
    job = check(parse(text))
    return dict(build(job).run(job.rounds).params)


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


TOP_K = '[[transforms]]\nname = "feedback"\naround = [{ name = "top_k", fraction = 0.1 }]'


@pytest.mark.parametrize(("algorithm", "more"), [("fedavg", ""), ("scaffold", ""), ("fedavg", TOP_K)])
def test_sites_give_the_bits_of_a_simulation(tmp_path: Path, algorithm: str, more: str) -> None:
    text = JOB.format(algorithm=algorithm, rounds=3) + more
    assert same(deployed(tmp_path, text), simulated(text))


OWN = """
[data]
name = "digits"
clients = 5
partition = { name = "dirichlet", alpha = 0.5 }
seed = 3
"""


def test_a_coordinator_without_data_trains_on_what_sites_have(tmp_path: Path) -> None:
    """The job says other data than anybody has: each site reads its own, the coordinator none."""
    text = JOB.format(algorithm="scaffold", rounds=3)
    found = deployed(tmp_path, text.replace('partition = { name = "dirichlet", alpha = 0.5 }', ""), own=OWN, data="none")
    assert same(found, simulated(text))


def test_a_site_without_its_clients_says_so(tmp_path: Path) -> None:
    link = End(Wire(), "north")
    site = Site(link, tmp_path)  # type: ignore[arg-type]
    values = parse(JOB.format(algorithm="fedavg", rounds=3)).values
    site.take(Invited("run-1", (ClientId("client-9"),), brief_of(values, ["client-9"])))
    (told,) = link.refusals
    assert "no client 'client-9'" in told
    site.take(Invited("run-1", (ClientId("client-0"),), b"{}"))
    assert "makes no sense" in link.refusals[1]
    site.take(Invited("run-1", (ClientId("client-0"),), brief_of({**values, "algorithm": "fedavgg"}, ["client-0"])))
    assert "did you mean 'fedavg'" in link.refusals[2]


def test_a_job_can_not_name_a_folder_of_the_site(tmp_path: Path) -> None:
    link = End(Wire(), "north")
    values = parse(JOB.format(algorithm="fedavg", rounds=3)).values
    Site(link, tmp_path).take(Invited("../../elsewhere", (ClientId("client-0"),), brief_of(values, ["client-0"])))  # type: ignore[arg-type]
    assert "has a name that is no file's" in link.refusals[0]


def test_what_a_coordinator_says_of_a_job_that_is_not_the_sites_ends_nothing(tmp_path: Path) -> None:
    wire = Wire()
    site = Site(End(wire, "north"), tmp_path)  # type: ignore[arg-type]
    client = ClientId("client-0")
    for job in ("run-9", "../../elsewhere"):
        site.take(Offered(job, Assignment(0, client, "train", {}, 0)))
        (answer,) = wire.answers(job, 1.0)
        assert isinstance(answer, Failure)
        assert (answer.kind, answer.reason) == ("invalid", "this site does not take part in the job")
    for event in (Acknowledged, Refused):
        site.take(event("../../elsewhere", Place(0, client, "train")))
    assert not list(tmp_path.iterdir())


def test_a_site_answers_for_its_own_clients_alone(tmp_path: Path) -> None:
    values = parse(JOB.format(algorithm="fedavg", rounds=3)).values
    invited = Invited("run-1", (ClientId("client-0"),), brief_of(values, [f"client-{i}" for i in range(5)]))
    part = Part(invited, FileMemories(tmp_path), None)
    for client, work in (("client-1", "train"), ("client-0", "dig")):
        answer = part.answer(Assignment(0, ClientId(client), work, {}, 0))
        assert isinstance(answer, Failure)
        assert answer.kind == "invalid"


@pytest.mark.parametrize(
    ("sites", "says"),
    [
        ({"north": ["a", "b"], "south": ["b"]}, "a client is at one site"),
        ({"north": ["a"]}, "'b' is at no site"),
        ({"north": ["a", "b", "c"]}, "'c' is no client"),
    ],
)
def test_every_client_is_at_one_site(sites: dict[str, list[str]], says: str) -> None:
    job = check(parse(JOB.format(algorithm="fedavg", rounds=3))).model_copy(update={"sites": sites})
    with pytest.raises(ConfigError, match=says):
        sites_of(job, [ClientId("a"), ClientId("b")])
