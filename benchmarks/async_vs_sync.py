"""Asynchronous against synchronous at the same target, in virtual time: 200 clients whose speeds are lognormal, sigma 0.93.

The digits, shared out by label, to 90 % on what the server holds out. What is compared is virtual seconds, bytes and trips
until the target is first met, as medians over seeds; trips and bytes are those of all clients that were sent to work, also of
those whose work was cancelled. The first seed is run twice, and must record the same numbers to the last bit.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from results import publish

from atoll.algorithms.evaluation import with_evaluation
from atoll.algorithms.fedavg import fedavg
from atoll.data.digits import digits
from atoll.data.partition.dirichlet import dirichlet
from atoll.engines.serial import serial
from atoll.engines.virtual import Virtual
from atoll.fleets.fleet import Spent
from atoll.fleets.steady import lognormal
from atoll.local.binding import binding
from atoll.local.evaluate import evaluate
from atoll.local.sgd import sgd
from atoll.models.mlp import mlp
from atoll.policy import Policy, buffered, over_selecting, synchronous
from atoll.round import RunState, Shell, run
from atoll.store.journal import Ephemeral
from atoll.tasks.classification import classification
from atoll.types import HELD_OUT, ClientId, Event

TARGET, MOST_STEPS, CLIENTS = 0.9, 1500, 200
# Beside each: virtual time to 90 % in a reproduction with other data, two seeds, in units of its own; ratios are comparable.
WAYS: Mapping[str, tuple[Policy, str]] = {
    "synchronous 30": (synchronous(30), "175 / 228"),
    "over-selecting 30 of 39": (over_selecting(30, 1.3), "49 / 46"),
    "FedBuff K 10, 39 at work": (buffered(39, buffer=10), "39 / 22"),
    "FedAsync K 1, 39 at work": (buffered(39, buffer=1), "45 / 34"),
}


class Watch:
    """Hashes all that is recorded; notes the last accuracy and clock."""

    def __init__(self) -> None:
        self.digest, self.clock_s, self.accuracy = hashlib.sha256(), 0.0, 0.0

    def emit(self, event: Event) -> None:
        told = (event.kind, event.round, event.work, event.client, sorted(event.metrics.items()))
        self.digest.update(repr(told).encode())
        if event.kind == "reduced" and event.work == "evaluate":
            self.accuracy = event.metrics["accuracy"]
        if event.kind == "round":
            self.clock_s = event.metrics["clock_s"]


class Run(NamedTuple):
    """One run to the target."""

    met: bool
    clock_s: float
    steps: int
    spent: Spent
    digest: str


def once(policy: Policy, seed: int) -> Run:
    """One run; `met` is False where the steps ran out."""
    torch.manual_seed(seed)
    data = digits(clients=CLIENTS, partition=dirichlet(0.5), test_fraction=0.0, seed=seed)
    assert data.test is not None
    task, watch, shard = classification(mlp(64, [32], 10)), Watch(), ClientId(f"{HELD_OUT}0")
    everybody = {**data.clients, shard: {"test": data.test}}
    algorithm = with_evaluation(fedavg(sgd(task, lr=0.1, batch_size=4, epochs=2)), evaluate(task), [shard])
    fleet = lognormal(sigma=0.93, example_s=0.1, down=1e6, up=1e6, seed=seed)
    engine = Virtual(serial(algorithm.local, everybody), algorithm.local, everybody, fleet)
    after = RunState(0, algorithm.init(binding(task.module).state()))
    shell = Shell(engine, Ephemeral(), watch)
    for after in run(after, algorithm, policy, list(data.clients), MOST_STEPS, seed, shell):  # noqa: B007, B020
        if watch.accuracy >= TARGET:
            break
    for round, work in {(a.round, a.work) for a in after.in_flight}:
        engine.cancel(round, work)  # who is still at work has spent something, too
    return Run(watch.accuracy >= TARGET, watch.clock_s, after.round, engine.spent, watch.digest.hexdigest())


def row(name: str, runs: list[Run], published: str, baseline_s: float | None) -> dict[str, Any]:
    """Medians over seeds."""
    clock_s = statistics.median(r.clock_s for r in runs)
    return {
        "way": name,
        "virtual s": round(clock_s, 1),
        "least / most": f"{min(r.clock_s for r in runs):.0f} / {max(r.clock_s for r in runs):.0f}",
        "times faster": round((baseline_s or clock_s) / clock_s, 2),
        "trips": round(statistics.median(r.spent.trips for r in runs)),
        "MB": round(statistics.median((r.spent.bytes_down + r.spent.bytes_up) / 1e6 for r in runs), 2),
        "steps": round(statistics.median(r.steps for r in runs)),
        "kJ (simulated)": round(statistics.median(r.spent.energy_j / 1e3 for r in runs), 1),
        "met": f"{sum(r.met for r in runs)} of {len(runs)}",
        "published": published,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, (policy, published) in WAYS.items():
        runs = [once(policy, seed) for seed in range(arguments.seeds)]
        replay = "the same SHA-256" if once(policy, 0).digest == runs[0].digest else "DIFFERENT"
        rows.append(row(name, runs, published, rows[0]["virtual s"] if rows else None) | {"run twice": replay})
    publish("async_vs_sync", rows, f"{CLIENTS} clients to {TARGET:.0%}, medians of {arguments.seeds} seeds")


if __name__ == "__main__":
    main()
