"""A coordinator and its sites in one process, with frames between them and no network: the bits are those of a simulation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from atoll.deploy.coordinator import coordinate, opened
from atoll.deploy.site import Site
from atoll.job.build import build
from atoll.job.check import check
from atoll.job.text import parse
from atoll.store.runs import Store
from tests.deploy.wire import End, Wire

JOB = """
atoll = 1
seed = 3
rounds = 3
{more}

[data]
name = "digits"
clients = 5
partition = {{ name = "dirichlet", alpha = 0.5 }}

[task]
name = "classification"
model = {{ name = "mlp", inputs = 64, hidden = [16], outputs = 10 }}

[local]
name = "sgd"
lr = 0.1

[algorithm]
name = "{algorithm}"

[sites]
north = ["client-0", "client-1", "client-2"]
south = ["client-3", "client-4"]
"""


def deployed(tmp_path: Path, text: str, each_round: Callable[[int, Any], None] | None = None) -> dict[str, torch.Tensor]:
    wire, over = Wire(), threading.Event()
    sites = [
        threading.Thread(target=Site(End(wire, s), tmp_path / s).serve, args=(over.is_set, 0.05)) for s in ("north", "south")
    ]  # type: ignore[arg-type]
    document = parse(text)
    job = check(document)
    for site in sites:
        site.start()
    try:
        with Store(tmp_path / "runs") as store, opened(store, "job", document.values, job) as run:
            outcome = coordinate(wire, job, document.values, run, each_round=each_round, wait=lambda: alive(sites))  # type: ignore[arg-type]
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
    text = JOB.format(algorithm=algorithm, more="") + more
    assert same(deployed(tmp_path, text), simulated(text))
