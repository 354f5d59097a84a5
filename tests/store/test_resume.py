"""A federation that is stopped in the middle of rounds, again and again, ends in the bits of one that never was."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atoll.store.runs import Store
from atoll.testing.store import same_bits
from atoll.types import Event

pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install 'atoll[data]'")

from atoll import classification, digits, dirichlet, fedavg, mlp, scaffold, server_opt, sgd
from atoll.federation import Federation
from atoll.policy import Policy

ROUNDS = 6
OVER_SELECTING, ASYNCHRONOUS = Policy(in_flight=5, close_after=4), Policy(in_flight=3, close_after=2, refill=True)


class StoppedError(Exception):
    pass


class Stop:
    """A sink that ends the run at its n-th event."""

    def __init__(self, left: int) -> None:
        self.left = left

    def emit(self, event: Event) -> None:
        self.left -= 1
        if self.left == 0:
            raise StoppedError


@pytest.mark.parametrize(
    ("algorithm", "policy"),
    [
        (lambda local: scaffold(local, 8), OVER_SELECTING),
        (lambda local: fedavg(local, server_opt.adam(0.01)), OVER_SELECTING),
        (fedavg, ASYNCHRONOUS),
    ],
    ids=["scaffold", "fedadam", "asynchronous"],
)
def test_stopped_at_random_events(tmp_path: Path, algorithm: Callable[[Any], Any], policy: Policy) -> None:
    def federation() -> Federation:
        task = classification(mlp(64, [16], 10))
        return Federation(task, data, algorithm(sgd(task, lr=0.1)), policy, seed=3)

    data, rng, stops = digits(clients=8, partition=dirichlet(0.5)), random.Random(5), 0
    whole = federation()
    start = {name: x.clone() for name, x in whole.task.module.state_dict().items()}
    wanted = whole.run(ROUNDS)
    with Store(tmp_path) as store:
        created = store.create("a", {}, seed=3, rounds=ROUNDS)
        created.close()
        for _ in range(60):
            again = federation()
            again.task.module.load_state_dict(start)
            try:
                with store.open(created.id) as run:
                    found = again.run(ROUNDS, run, sinks=[Stop(rng.randint(2, 26))])
                break
            except StoppedError:
                stops += 1
        assert stops >= 3
        assert same_bits(dict(found.params), dict(wanted.params))
        assert all(same_bits(found.memory(client), wanted.memory(client)) for client in data.clients)
        record = store.record(created.id)
    assert record.status == "finished"
    told = [(p.round, p.work, p.client, p.name, p.value) for p in record.series if p.name not in ("seconds", "clock_s")]
    seen = [(p.round, p.work, p.client, p.name, p.value) for p in wanted._recorder.points if p.name not in ("seconds", "clock_s")]
    assert told == seen, "something was recorded twice, or not at all"
