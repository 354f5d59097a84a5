"""Whole federations in virtual time: the same whatever computes them, and of the size of those at work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from atoll.algorithms.fedavg import fedavg
from atoll.data.synthetic import synthetic
from atoll.federation import Federation
from atoll.fleets.phones import phones
from atoll.local.sgd import sgd
from atoll.models.mlp import mlp
from atoll.policy import Policy, buffered, over_selecting
from atoll.tasks.classification import classification
from atoll.testing.store import same_bits

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "fleet.py"


@pytest.mark.parametrize("policy", [over_selecting(8, 1.5), buffered(12, buffer=5)], ids=["over-selecting", "buffered"])
def test_a_run_depends_on_its_seed_and_not_on_what_computes_it(policy: Policy) -> None:
    found: list[Any] = []
    for engine, options in (("serial", {}), ("processes", {"workers": 2}), ("serial", {})):
        torch.manual_seed(0)
        task, data = classification(mlp(20, [8], 4)), synthetic(clients=400, features=20, classes=4, mean_examples=20.0)
        algorithm, fleet = fedavg(sgd(task, lr=0.1, batch_size=5)), phones(example_s=1.0, seed=6)
        federation = Federation(task, data, algorithm, policy, engine=engine, engine_options=options, fleet=fleet, seed=6)
        result = federation.run(4)
        found.append((dict(result.params), [(p.round, p.work, p.client, p.name, p.value) for p in result._recorder.points]))
    for other in found[1:]:
        assert same_bits(other[0], found[0][0])
        assert other[1] == found[0][1]


@pytest.mark.slow
def test_memory_follows_those_at_work_and_not_those_registered() -> None:
    peaks = []
    for clients in (500, 50_000):
        command = [sys.executable, str(BENCHMARK), "--one", "lognormal", str(clients), "--active", "50", "--rounds", "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        row = json.loads(done.stdout)
        peaks.append(row["peak MB"])
        assert row["registered"] == clients
    assert peaks[1] - peaks[0] < 25, f"49,500 clients that never work take {peaks[1] - peaks[0]} MB"
