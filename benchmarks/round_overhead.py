"""A round's cost beside a bare PyTorch loop: 1,000 clients, 100 a round, MLP 784-200-200-10, batch 10, one epoch.

The bare loop is what a person would write: nn.Module, torch.optim.SGD, a loop over clients and batches, a weighted mean
of the state_dicts. All three train on the same Fashion-MNIST images (60 a client), one BLAS thread a process, in turn in
one run; the first round of each is left out of the median.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from results import publish, verdict
from torch.nn import functional

from atoll import classification as classify
from atoll import fashion_mnist, fedavg, iid, mlp, rng, sgd
from atoll.engines.processes import processes
from atoll.engines.serial import serial
from atoll.local.binding import binding
from atoll.policy import synchronous
from atoll.round import RunState, Shell, run
from atoll.store.journal import Ephemeral
from atoll.types import Dataset, Event

CLIENTS, COHORT, BATCH, LR = 1000, 100, 10, 0.1
Loss = Callable[[], float]


class Quiet:
    """A sink that drops everything."""

    def emit(self, event: Event) -> None:
        pass


def ours(data: Dataset, engine: Any, rounds: int) -> Iterator[Loss]:
    """One round of FedAvg each time it is asked for."""
    task = classify(mlp())
    algorithm = fedavg(sgd(task, lr=LR, batch_size=BATCH))
    own = engine(algorithm.local, data.clients)
    start = RunState(0, algorithm.init(binding(task.module).state()))
    try:
        for state in run(start, algorithm, synchronous(COHORT), list(data.clients), rounds, 0, Shell(own, Ephemeral(), Quiet())):
            params = algorithm.params(state.algorithm)
            yield lambda params=params: test_loss(data, params)  # type: ignore[misc]
    finally:
        own.close()


def two_workers(locals_: Any, clients: Any) -> Any:
    return processes(locals_, clients, workers=2)


def bare(data: Dataset, rounds: int) -> Iterator[Loss]:
    """The same rounds over the same cohorts, without Atoll."""
    torch.set_num_threads(1)
    module = mlp()
    everyone = sorted(data.clients)
    shared = {name: x.clone() for name, x in module.state_dict().items()}
    for number in range(rounds):
        cohort = [everyone[i] for i in rng.permutation(CLIENTS, 0, "cohort", number).tolist()[:COHORT]]
        sums, total = {name: torch.zeros_like(x) for name, x in shared.items()}, 0
        for client in cohort:
            examples = data.clients[client]["train"]
            module.load_state_dict(shared)
            optimiser = torch.optim.SGD(module.parameters(), lr=LR)
            order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(number))
            for index in torch.split(order, BATCH):
                batch = examples.take(index)
                optimiser.zero_grad()
                torch.autograd.backward(functional.cross_entropy(module(batch["x"]), batch["y"]))
                optimiser.step()
            for name, x in module.state_dict().items():
                sums[name].add_(x, alpha=len(examples))
            total += len(examples)
        shared = {name: x / total for name, x in sums.items()}
        yield lambda shared=shared: test_loss(data, shared)  # type: ignore[misc]


def test_loss(data: Dataset, params: Any) -> float:
    """Held-out cross-entropy: the honesty check that all three learn alike."""
    assert data.test is not None
    batch = data.test.take(torch.arange(len(data.test)))
    with torch.no_grad():
        outputs = torch.func.functional_call(mlp(), dict(params), (batch["x"],))
    return float(functional.cross_entropy(outputs, batch["y"]))


def cpu_s() -> float:
    """CPU seconds of this process and of its children that ended, workers still at work left out."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    data = fashion_mnist(clients=CLIENTS, partition=iid(), test_fraction=0.0)
    contenders: dict[str, Iterator[Loss]] = {
        "bare loop": bare(data, rounds),
        "serial": ours(data, serial, rounds),
        "processes, 2 workers": ours(data, two_workers, rounds),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    losses: dict[str, float] = {}
    for number in range(rounds):
        for name, contender in contenders.items():  # in turn, so that a slow spell of the machine hits all
            began = time.perf_counter()
            loss = next(contender)
            times[name].append(time.perf_counter() - began)
            if number == rounds - 1:
                losses[name] = loss()
    cpu = {}
    for contender in contenders.values():
        contender.close()  # type: ignore[attr-defined]
    again: dict[str, Callable[[], Iterator[Loss]]] = {
        "bare loop": lambda: bare(data, 5),
        "serial": lambda: ours(data, serial, 5),
        "processes, 2 workers": lambda: ours(data, two_workers, 5),
    }
    for name, make in again.items():
        before = cpu_s()
        for _ in make():
            pass
        cpu[name] = (cpu_s() - before) / 5
    medians = {name: statistics.median(spent[1:]) for name, spent in times.items()}
    ratio = statistics.median(s / b for s, b in zip(times["serial"][1:], times["bare loop"][1:], strict=True))
    gain = statistics.median(s / p for s, p in zip(times["serial"][1:], times["processes, 2 workers"][1:], strict=True))
    targets = {
        "bare loop": ("",),
        "serial": (f"{ratio:.2f}x the bare loop, target 1.15: {verdict(ratio, at_most=1.15)}",),
        "processes, 2 workers": (f"{gain:.2f}x faster than serial, target 1.6: {verdict(gain, at_least=1.6)}",),
    }
    rows = [
        {
            "": name,
            "seconds a round": round(medians[name], 4),
            "CPU-seconds a round": round(cpu[name], 4),
            "held-out loss": round(losses[name], 4),
            "against the target": targets[name][0],
        }
        for name in contenders
    ]
    publish("round_overhead", rows, f"medians of {rounds - 1} rounds, ratios pair by pair")


if __name__ == "__main__":
    main()
