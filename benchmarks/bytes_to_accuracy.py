"""Bytes until 95 % on the digits, by codec: 48 clients, Dirichlet 0.3, 10 a round, a 55k-parameter MLP, server momentum 0.9.

Bytes are those of the frames of all clients, both directions, until the target is first met on what the server holds out;
a saving is fp32's bytes over the codec's, seed by seed, as a median over seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from results import publish, verdict

from atoll.algorithms.fedavg import fedavg
from atoll.data.digits import digits
from atoll.data.partition.dirichlet import dirichlet
from atoll.federation import Federation
from atoll.local.sgd import sgd
from atoll.models.mlp import mlp
from atoll.policy import synchronous
from atoll.server_opt import momentum
from atoll.tasks.classification import classification
from atoll.transforms.compress.ecsq import ecsq
from atoll.transforms.compress.eden import eden
from atoll.transforms.compress.feedback import feedback
from atoll.transforms.compress.few_bits import few_bits
from atoll.transforms.compress.int8 import int8
from atoll.transforms.compress.layered import layered
from atoll.transforms.compress.top_k import top_k
from atoll.types import Event, Transform

CLIENTS, COHORT, TARGET, MOST_ROUNDS = 48, 10, 0.95, 150
Links = Sequence[Transform[Any]]


class Way(NamedTuple):
    """A pipe, and what is asked of it."""

    links: Callable[[], Links]
    saving: float | None = None  # of uplink bytes, at least
    rounds: str = ""  # at most: "+1" more than fp32's, or "x1.7" of them
    broadcast: Callable[[], Transform[Any]] | None = None


WAYS: Mapping[str, Way] = {
    "fp32": Way(lambda: ()),
    "int8": Way(lambda: (int8(),)),
    "EDEN, 1 bit": Way(lambda: (eden(bits=1),)),
    "ecsq, 2.2 rms": Way(lambda: (ecsq(step=2.2),), 48.0, "+1"),
    "layered, 0.6 bits": Way(lambda: (layered(0.6),), 48.0, "+1"),
    "ecsq, 8 rms": Way(lambda: (ecsq(step=8.0),), 195.0, "x1.7"),
    "ecsq, 6.5 rms": Way(lambda: (ecsq(step=6.5),), 195.0, "x1.7"),
    "ecsq, 7 rms": Way(lambda: (ecsq(step=7.0),), 195.0, "x1.7"),
    "ecsq, 7.5 rms": Way(lambda: (ecsq(step=7.5),), 195.0, "x1.7"),
    "ecsq, 7 rms, feedback": Way(lambda: (feedback([ecsq(step=7.0)], when="always"),), 195.0, "x1.7"),
    "ecsq, 8 rms, feedback": Way(lambda: (feedback([ecsq(step=8.0)], when="always"),), 195.0, "x1.7"),
    "top-k 1 %, 2 bits, feedback": Way(lambda: (feedback([top_k(0.01), few_bits(2)], when="always"),), 195.0, "x1.7"),
    "top-k 1 %, 2 bits": Way(lambda: (top_k(0.01), few_bits(2))),
    "ecsq, 2.2 rms; model in ecsq, 1 rms": Way(lambda: (ecsq(step=2.2),), broadcast=lambda: ecsq(step=1.0)),
    "ecsq, 8 rms; model in ecsq, 4 rms": Way(lambda: (ecsq(step=8.0),), broadcast=lambda: ecsq(step=4.0)),
}


class Reached(Exception):
    """The target is met: the run need not go on."""


class Watch:
    """Adds up bytes and stops at the target."""

    def __init__(self) -> None:
        self.up = self.down = 0.0
        self.rounds, self.met = 0, False

    def emit(self, event: Event) -> None:
        if event.kind == "update" and event.work == "train":
            self.up += event.metrics["bytes_up"]
            self.down += event.metrics["bytes_down"]
        elif event.kind == "reduced" and event.work == "evaluate":
            self.rounds = event.round + 1
            self.met = event.metrics["accuracy"] >= TARGET

    def after(self, rounds: int, params: object) -> None:
        """Between rounds."""
        if self.met:
            raise Reached


def once(way: Way, seed: int) -> Watch:
    """One run to the target."""
    torch.manual_seed(seed)
    task = classification(mlp(64, [200, 200], 10))
    data = digits(clients=CLIENTS, partition=dirichlet(0.3), test_fraction=0.0, seed=seed)
    algorithm = fedavg(sgd(task, lr=0.1, batch_size=10), server_opt=momentum(1.0, beta=0.9))
    broadcast = None if way.broadcast is None else way.broadcast()
    policy = synchronous(COHORT)
    federation = Federation(task, data, algorithm, policy, way.links(), broadcast=broadcast, seed=seed)
    watch = Watch()
    with contextlib.suppress(Reached):
        federation.run(MOST_ROUNDS, sinks=[watch], each_round=watch.after)
    return watch


def row(name: str, way: Way, runs: list[Watch], plain: list[Watch]) -> dict[str, Any]:
    """Rounds and bytes of all seeds, and the savings as medians."""

    def saving(of: Callable[[Watch], float]) -> float:
        return round(statistics.median(of(before) / of(after) for before, after in zip(plain, runs, strict=True)), 1)

    up, more = saving(lambda w: w.up), [after.rounds - before.rounds for before, after in zip(plain, runs, strict=True)]
    times = statistics.median(after.rounds / before.rounds for before, after in zip(plain, runs, strict=True))
    found = {
        "codec": name,
        "met": f"{sum(w.met for w in runs)} of {len(runs)}",
        "rounds": " / ".join(str(w.rounds) for w in runs),
        "MB up": round(statistics.median(w.up for w in runs) / 1e6, 3),
        "MB down": round(statistics.median(w.down for w in runs) / 1e6, 3),
        "saving up": up,
        "saving down": saving(lambda w: w.down),
        "saving both": saving(lambda w: w.up + w.down),
    }
    if way.saving is not None:
        enough = statistics.median(more) <= int(way.rounds) if way.rounds[0] == "+" else times <= float(way.rounds[1:])
        found |= {"target": f"{way.saving:g}x", "": verdict(up, at_least=way.saving)}
        found |= {"target rounds": way.rounds, " ": "met" if enough else "missed"}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[""], help="names of codecs that begin so, beside fp32")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    plain: list[Watch] = []
    for name, way in WAYS.items():
        if plain and not name.startswith(tuple(arguments.only)):
            continue
        runs = [once(way, seed) for seed in range(arguments.seeds)]
        plain = plain or runs
        rows.append(row(name, way, runs, plain))
    note = f"{CLIENTS} clients, {COHORT} a round, to {TARGET:.0%}; savings are medians of {arguments.seeds} seeds"
    publish("bytes_to_accuracy", rows, note)


if __name__ == "__main__":
    main()
