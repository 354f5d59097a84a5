"""Federations small enough to check on paper: one weight w, F_k(w) = mean over the client's y of (w - y)^2 / 2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atoll.data.examples import Tensors
from atoll.engines.serial import serial
from atoll.interfaces import Engine, Journal, Memories
from atoll.policy import Policy
from atoll.round import RunState, Shell, run
from atoll.store.journal import Ephemeral
from atoll.store.memories import Kept
from atoll.tasks.custom import custom
from atoll.types import Algorithm, ClientId, Event, Examples, Task

Clients = Mapping[ClientId, Mapping[str, Examples]]


def half_squared(outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    return 0.5 * (outputs[:, 0] - batch["y"]).square().mean()


def line(w: float = 0.0) -> Task:
    """The model w x, without a bias: at x = 1 its gradient is w - mean(y), so that distances shrink by 1 - lr a step."""
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(w)
    return custom(module, half_squared)


def holding(**ys: Sequence[float]) -> Clients:
    """Clients by name, each with examples x = 1 and these y, to train on and to be judged on."""
    sets = {name: Tensors({"x": torch.ones(len(y), 1), "y": torch.tensor(y)}) for name, y in ys.items()}
    return {ClientId(name): {"train": examples, "test": examples} for name, examples in sets.items()}


# a has one example at 1, b three at 5: the mean of the examples is 4, the mean of the clients 3.
TWO = {"a": [1.0], "b": [5.0, 5.0, 5.0]}


class Log:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: str, work: str | None = None) -> list[Event]:
        return [e for e in self.events if e.kind == kind and work in (None, e.work)]


def states(
    algorithm: Algorithm[Any],
    clients: Clients,
    rounds: int,
    task: Task | None = None,
    policy: Policy | None = None,
    engine: Any = serial,
    seed: int = 0,
    log: Log | None = None,
    memories: Memories | None = None,
    journal: Journal | None = None,
    state: RunState | None = None,
    population: Iterable[ClientId] | None = None,
    **options: Any,
) -> list[RunState]:
    """Run rounds and give the state after each."""
    from atoll.local.binding import binding

    if state is None:
        assert task is not None
        state = RunState(0, algorithm.init(binding(task.module).state()))
    made: Engine = engine(algorithm.local, clients, Kept() if memories is None else memories, **options)
    shell = Shell(made, journal or Ephemeral(), log or Log())
    try:
        return list(run(state, algorithm, policy or Policy(), population or list(clients), rounds, seed, shell))
    finally:
        made.close()
        if task is not None:
            binding(task.module).restore()


def weights(algorithm: Algorithm[Any], clients: Clients, rounds: int, task: Task, **options: Any) -> list[float]:
    """w after each round."""
    return [float(algorithm.params(s.algorithm)["weight"].detach()) for s in states(algorithm, clients, rounds, task, **options)]
