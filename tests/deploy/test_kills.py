"""Killed with SIGKILL at every point that has a name, at two of them, both ends at once and at random: the bits are the same.

The law is the simulation in one process: the same model, the same memory of each client.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.kills import Left, Nursery, Trial, left
from tests.deploy.points import POINTS

pytestmark = pytest.mark.slow

# What is sent of the model is of three chunks, and the update too.
JOB = """
atoll = 1
seed = 3
rounds = {rounds}

[data]
name = "digits"
clients = 3

[task]
name = "classification"
model = {{ name = "mlp", inputs = 64, hidden = [4096], outputs = 10 }}

[local]
name = "sgd"
lr = 0.1
steps = 8

[algorithm]
name = "{algorithm}"

[sites]
north = ["client-0", "client-1"]
south = ["client-2"]
"""
COMPRESSED = '[[transforms]]\nname = "feedback"\naround = [{ name = "top_k", fraction = 0.5 }]'
JOBS = {
    "variates": JOB.format(rounds=2, algorithm="scaffold"),
    "residuals": JOB.format(rounds=6, algorithm="fedavg") + COMPRESSED,
}


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Left]:
    """What each job leaves when nobody dies."""
    folder = tmp_path_factory.mktemp("whole")
    for name, text in JOBS.items():
        (folder / f"{name}.toml").write_text(text)
        nursery.simulate(folder, name)
    found = {name: left(name, folder / "simulated") for name in JOBS}
    assert all(each.model and len(each.memory) == 3 for each in found.values()), "a job that remembers nothing tests little"
    return found


def trial(nursery: Nursery, folder: Path, name: str = "variates") -> Trial:
    (folder / f"{name}.toml").write_text(JOBS[name])
    return Trial(nursery, folder, name)


def died(tried: Trial, who: str, point: str) -> None:
    how = tried.machines[who].ended()
    assert how == -9, f"{who} did not die at {point!r} but ended with {how}: {tried.log()}"


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_named_point(nursery: Nursery, whole: dict[str, Left], tmp_path: Path, point: str) -> None:
    tried, who = trial(nursery, tmp_path), "serve" if point.startswith("serve") else "north"
    for each in ("serve", "north", "south"):
        tried.start(each, *([point] if each == who else []))
    died(tried, who, point)
    tried.start(who)
    assert tried.end() == whole["variates"], tried.log()


TWICE = [
    ("serve: journalled", "serve: job open"),
    ("serve: update half come", "serve: update whole"),
    ("serve: second checkpoint", "serve: model saved"),
    ("join: update half sent", "join: calling"),
    ("join: before the commit", "join: before the commit"),
    ("join: proposed", "join: proposed"),
]


@pytest.mark.parametrize(("first", "second"), TWICE, ids=[" then ".join(each) for each in TWICE])
def test_killed_and_killed_again(nursery: Nursery, whole: dict[str, Left], tmp_path: Path, first: str, second: str) -> None:
    tried, who = trial(nursery, tmp_path), "serve" if first.startswith("serve") else "north"
    for each in ("serve", "north", "south"):
        tried.start(each, *([first] if each == who else []))
    died(tried, who, first)
    tried.start(who, second)
    died(tried, who, second)
    tried.start(who)
    assert tried.end() == whole["variates"], tried.log()


ONCE = ["serve: journalled", "serve: acknowledged", "join: before the commit", "join: update half sent"]


@pytest.mark.parametrize("point", ONCE)
def test_all_killed_at_once(nursery: Nursery, whole: dict[str, Left], tmp_path: Path, point: str) -> None:
    """One dies at the point, and everybody with it, as where one power line feeds them all."""
    tried, who = trial(nursery, tmp_path), "serve" if point.startswith("serve") else "north"
    for each in ("serve", "north", "south"):
        tried.start(each, *([point] if each == who else []))
    died(tried, who, point)
    for machine in tried.machines.values():
        machine.kill()
    for each in ("south", "north", "serve"):
        assert tried.machines[each].ended() == -9
        tried.start(each)
    assert tried.end() == whole["variates"], tried.log()


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments(nursery: Nursery, whole: dict[str, Left], tmp_path: Path, seed: int) -> None:
    chance, tried = random.Random(seed), trial(nursery, tmp_path, "residuals")
    for each in ("serve", "north", "south"):
        tried.start(each)
    tried.machines["north"].wait_for(": answered")
    for _ in range(4):
        time.sleep(chance.uniform(0.0, 0.2))
        who = chance.choice(["serve", "serve", "north", "south"])
        tried.machines[who].kill()
        if tried.machines[who].ended() == 0:  # the job was quicker
            break
        tried.start(who)
    assert tried.end() == whole["residuals"], tried.log()
