"""What federating is worth: held-out loss of the main job's federation, of each client alone, and of pooled data.

All three start from the same adapter and take the same number of optimiser steps (rounds x steps of the job file); a
client alone keeps its own data, the centralised run draws from everybody's with as many examples a step as the whole
federation reads in one. The held-out blocks are the server's, from all speakers, and seen by nobody.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Generator, Sequence
from typing import Any

import torch
from results import publish, verdict

from atoll import tree
from atoll.aggregators.mean import mean
from atoll.algorithms.fedavg import fedavg
from atoll.data.examples import Tensors
from atoll.engines.processes import processes
from atoll.federation import Federation
from atoll.job.build import build, load_job
from atoll.local.adamw import adamw
from atoll.local.binding import binding
from atoll.local.evaluate import evaluate
from atoll.policy import synchronous
from atoll.round import RunState, Shell, run
from atoll.store.journal import Ephemeral
from atoll.types import HELD_OUT, Aggregator, Algorithm, ClientId, Event, Local, Reduced, Request, Tree, Update


def gather() -> Aggregator[dict[str, torch.Tensor]]:
    """Every client's update under its name: what a benchmark may do and a server should not."""

    def add(acc: dict[str, torch.Tensor], update: Update) -> dict[str, torch.Tensor]:
        own = tree.put(update.tree, f"{update.client}/")
        return {**acc, **{name: x.clone() for name, x in own.items()}}

    return Aggregator(dict, add, lambda a, b: {**a, **b}, lambda acc: acc, only_sum=False)


def alone(local: Local[Any], judge: Local[Any], shards: dict[ClientId, ClientId]) -> Algorithm[Tree]:
    """Everybody trains by itself; `shards` names, for each copy of the held-out examples, whose model it judges."""

    def round(params: Tree, clients: Sequence[ClientId]) -> Generator[Request, Reduced, Tree]:
        trained = yield Request("train", clients, lambda _: params, gather(), True, len(clients))
        own = {c: tree.add(params, tree.take(trained.tree, f"{c}/")) for c in clients}
        yield Request("judge", list(shards), lambda s: own[shards[s]], mean(), True, len(shards))
        return params

    return Algorithm(tree.pack, round, lambda params: params, {"train": local, "judge": judge})


class Heard:
    """Held-out loss by the client whose model it is."""

    def __init__(self) -> None:
        self.losses: dict[str, float] = {}

    def emit(self, event: Event) -> None:
        if event.kind == "update" and event.work == "judge" and event.client:
            self.losses[event.client] = event.metrics["loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", default="examples/shakespeare.toml")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    job = load_job(arguments.job)
    federation = build(job)
    options = dict(job.local.parameters if job.local else {})
    steps, size = int(options.pop("steps")) * job.rounds, int(options.pop("batch_size"))
    data, task = federation.data, federation.task
    assert data.test is not None
    spent: dict[str, float] = {}

    began = time.perf_counter()
    result = federation.run(job.rounds)
    spent["federation"] = time.perf_counter() - began
    start, federated = result.history("baseline")[0][1], result.metrics["loss"]

    began = time.perf_counter()
    shards = {ClientId(f"{HELD_OUT}{c}"): c for c in data.clients}
    held = {shard: {"test": data.test} for shard in shards}
    algorithm = alone(
        adamw(task, batch_size=size, steps=steps, **options), evaluate(task, federation.evaluate_batch_size), shards
    )
    engine, heard = processes(algorithm.local, {**data.clients, **held}, workers=arguments.workers), Heard()
    first = RunState(0, algorithm.init(binding(task.module).state()))
    for _ in run(first, algorithm, synchronous(), list(data.clients), 1, job.seed, Shell(engine, Ephemeral(), heard)):
        pass
    engine.close()
    own = list(heard.losses.values())
    spent["alone"] = time.perf_counter() - began

    began = time.perf_counter()
    parts = [splits["train"].take(torch.arange(len(splits["train"]))) for splits in data.clients.values()]
    pooled = Tensors({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    everybody = data._replace(clients={ClientId("everybody"): {"train": pooled}})
    count = len(data.clients)
    central = adamw(task, batch_size=size * count, steps=steps, accumulate=count, **options)
    pooled_run = Federation(
        task, everybody, fedavg(central), evaluate_batch_size=federation.evaluate_batch_size, engine_options={"threads": 2}
    )
    centralised = pooled_run.run(1).metrics["loss"]
    spent["centralised"] = time.perf_counter() - began

    below = verdict(federated, at_most=statistics.mean(own))
    rows = [
        {"": "before training", "held-out loss": round(start, 4)},
        {"": "clients alone, mean", "held-out loss": round(statistics.mean(own), 4), "seconds": round(spent["alone"])},
        {"": "clients alone, best", "held-out loss": round(min(own), 4)},
        {"": "clients alone, worst", "held-out loss": round(max(own), 4)},
        {
            "": "federation",
            "held-out loss": round(federated, 4),
            "seconds": round(spent["federation"]),
            "below the mean alone": below,
        },
        {"": "centralised", "held-out loss": round(centralised, 4), "seconds": round(spent["centralised"])},
    ]
    publish("federated_gain", rows, f"{arguments.job}: {count} clients, {steps} steps each")


if __name__ == "__main__":
    main()
