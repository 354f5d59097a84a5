"""A run in virtual time that is stopped in mid-round, again and again, ends in the bits and at the time of one that was not."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from atoll.fleets.fleet import Fleet
from atoll.fleets.phones import phones
from atoll.fleets.steady import lognormal
from atoll.fleets.trace import trace
from atoll.rng import seeded
from atoll.testing.store import same_bits

pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install 'atoll[data]'")

from atoll import classification, digits, dirichlet, fedavg, mlp, scaffold, sgd
from atoll.federation import Federation
from atoll.policy import Policy, buffered, deadline, over_selecting, synchronous
from tests.core.stopping import stopped

ROUNDS = 6
POLICIES = {
    "synchronous": synchronous(4),
    "over-selecting": over_selecting(4, 1.5),
    "deadline": deadline(4, timeout_s=3.0),
    "buffered": buffered(5, buffer=3),
    "leased": Policy(5, 3, lease_s=2.5, refill=True, late="keep"),
}


def restless(folder: Path) -> Fleet:
    """Devices that are away every few seconds."""
    rng, file = random.Random(1), folder / "fleet.jsonl"
    rows = []
    for i in range(7):
        ends = sorted(rng.uniform(0.5, 30.0) for _ in range(8))
        sessions = [list(pair) for pair in zip(ends[::2], ends[1::2], strict=True)]
        rows.append({"client": f"d{i}", "example_s": 0.003 * (1 + i), "down": 1e5, "up": 5e4, "sessions": sessions})
    file.write_text("\n".join(map(json.dumps, rows)))
    return trace(str(file), repeat_s=30.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        *(("restless", policy) for policy in POLICIES),
        ("lognormal", "over-selecting"),
        ("phones", "synchronous"),
        ("phones", "leased"),
    ],
)
def test_stopped_at_random_events(kind: str, policy: str, tmp_path: Path) -> None:
    fleets = {
        "lognormal": lambda: lognormal(example_s=0.01, up=1e4),
        "restless": lambda: restless(tmp_path),
        "phones": lambda: phones(example_s=0.01, offline="pauses"),
    }
    fleet = fleets[kind]()

    def federation() -> Federation:
        with seeded(1):
            task = classification(mlp(64, [8], 10))
        algorithm = scaffold(sgd(task, lr=0.1), 12) if policy == "synchronous" else fedavg(sgd(task, lr=0.1))
        return Federation(task, data, algorithm, POLICIES[policy], fleet=fleet, seed=3)

    data = digits(clients=12, partition=dirichlet(0.5))
    wanted = federation().run(ROUNDS)
    found, record, stops = stopped(federation, ROUNDS, tmp_path, 2, 26)
    assert stops >= 3
    assert same_bits(dict(found.params), dict(wanted.params))
    assert all(same_bits(found.memory(client), wanted.memory(client)) for client in data.clients)
    assert record.status == "finished"

    def numbers(points: Any) -> list[tuple[Any, ...]]:
        return [(p.round, p.work, p.client, p.name, p.value) for p in points]

    assert numbers(record.series) == numbers(wanted._recorder.points), "another number, or another moment, than without a stop"
    assert [p.value for p in record.series if p.name == "clock_s"][-1] > 0
    assert any(note.title == "fleet" and note.text == fleet.about for note in record.notes)
