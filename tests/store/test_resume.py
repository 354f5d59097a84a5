"""A federation that is stopped in the middle of rounds, again and again, ends in the bits of one that never was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atoll.rng import seeded
from atoll.testing.store import same_bits

pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install 'atoll[data]'")

from atoll import classification, digits, dirichlet, fedavg, mlp, scaffold, server_opt, sgd
from atoll.federation import Federation
from atoll.policy import Policy
from tests.core.stopping import stopped

ROUNDS = 6
OVER_SELECTING, ASYNCHRONOUS = Policy(in_flight=5, close_after=4), Policy(in_flight=3, close_after=2, refill=True)


@pytest.mark.parametrize(
    ("algorithm", "policy", "key"),
    [
        (lambda local: scaffold(local, 8), OVER_SELECTING, ""),
        (lambda local: fedavg(local, server_opt.adam(0.01)), OVER_SELECTING, ""),
        (fedavg, ASYNCHRONOUS, ""),
        (lambda local: scaffold(local, 8), OVER_SELECTING, "5a" * 32),
    ],
    ids=["scaffold", "fedadam", "asynchronous", "scaffold sealed"],
)
def test_stopped_at_random_events(
    tmp_path: Path, algorithm: Callable[[Any], Any], policy: Policy, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if key:
        pytest.importorskip("cryptography")
        monkeypatch.setenv("ATOLL_STORE_KEY", key)

    def federation() -> Federation:
        with seeded(1):
            task = classification(mlp(64, [16], 10))
        return Federation(task, data, algorithm(sgd(task, lr=0.1)), policy, seed=3)

    data = digits(clients=8, partition=dirichlet(0.5))
    wanted = federation().run(ROUNDS)
    found, record, stops = stopped(federation, ROUNDS, tmp_path, 2, 26)
    assert stops >= 3
    assert same_bits(dict(found.params), dict(wanted.params))
    assert all(same_bits(found.memory(client), wanted.memory(client)) for client in data.clients)
    assert record.status == "finished"
    told = [(p.round, p.work, p.client, p.name, p.value) for p in record.series if p.name not in ("seconds", "clock_s")]
    seen = [(p.round, p.work, p.client, p.name, p.value) for p in wanted._recorder.points if p.name not in ("seconds", "clock_s")]
    assert told == seen, "something was recorded twice, or not at all"
