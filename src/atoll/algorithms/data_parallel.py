"""Data-parallel AdamW: what low-communication training is measured against. Every step crosses the network, both ways.

g = sum_k n_k g_k / sum_k n_k, g_k the gradient of client k's next batch at w;  w = AdamW(w, g) at the server
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple

import torch

from atoll import tree
from atoll.aggregators.mean import mean
from atoll.errors import ConfigError
from atoll.local.full_gradient import full_gradient
from atoll.local.gradient import Precision, clip_
from atoll.local.optimiser import adamw
from atoll.local.schedule import schedule as schedule_of
from atoll.types import Algorithm, ClientId, Reduced, Request, Task, Tree


class State(NamedTuple):
    """The global model, AdamW's moments and its count of steps."""

    params: Tree
    m: Tree
    v: Tree
    steps: int


def data_parallel(
    task: Task,
    lr: float = 3e-4,
    batch_size: int | None = 10,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    clip_norm: float | None = None,
    schedule: str = "constant",
    schedule_steps: int | None = None,
    warmup_steps: int = 0,
    precision: Precision = "fp32",
) -> Algorithm[State]:
    """One AdamW step a round, at the server, along the mean gradient of the clients' next batches.

    Over all clients it is AdamW on their pooled batches, so `batch_size` examples a client make a batch as many times as
    large. Options as in `atoll.local.adamw`; rounds are steps.

    Raises:
        ConfigError: lr is not above 0, or the schedule is not one.

    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> data_parallel(regression(linear(3, 1)), batch_size=8).local["train"].batching.steps
    1
    """
    if not lr > 0:
        raise ConfigError(f"data_parallel lr = {lr}: a learning rate must be above 0")
    local = full_gradient(task, batch_size, precision, steps=1)
    rate = schedule_of(schedule, None, 0, schedule_steps, warmup_steps)
    optimiser = adamw(b1, b2, eps, weight_decay, rate)

    def init(w: Tree) -> State:
        trained = {name: torch.zeros_like(x) for name, x in w.items() if name not in local.averaged}
        return State(tree.pack(w), trained, trained, 0)

    def round(state: State, clients: Sequence[ClientId]) -> Generator[Request, Reduced, State]:
        reduced = yield Request("train", clients, lambda _: state.params, mean(), like=state.params)
        params, m, v = (tree.pack(each) for each in (state.params, state.m, state.v))
        for name in local.averaged:  # buffers arrive as differences
            params[name].add_(reduced.tree[name])
        grads = [reduced.tree[name].clone() for name in m]
        if clip_norm is not None:
            clip_(grads, clip_norm)
        now = {"m": list(m.values()), "v": list(v.values()), "t": [torch.tensor(float(state.steps))]}
        optimiser.step([params[name] for name in m], grads, now, lr)
        return State(params, m, v, state.steps + 1)

    return Algorithm(init, round, lambda state: state.params, {"train": local})
