"""Local SGD, the client half of FedAvg (McMahan et al. 2017, arXiv:1602.05629, Algorithm 1, ClientUpdate)."""

from __future__ import annotations

from atoll.local import optimiser
from atoll.local.descent import Carry, Recipe, descent
from atoll.local.gradient import Precision, gradient
from atoll.local.schedule import schedule as schedule_of
from atoll.types import Batching, Local, Task


def sgd(
    task: Task,
    lr: float = 0.1,
    batch_size: int | None = 10,
    epochs: int = 1,
    steps: int | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    schedule: str = "constant",
    schedule_rounds: int | None = None,
    warmup_rounds: int = 0,
    keep: bool = False,
    precision: Precision = "fp32",
    accumulate: int = 1,
    checkpointing: bool = False,
) -> Local[Carry]:
    """y -= lr * gradient, batch by batch; the payload is y - w, its weight the examples seen.

    `steps` (when given) replaces `epochs`: exactly that many batches. `clip_norm` bounds the gradient's Euclidean
    norm at each step. `schedule` ("constant", "linear", "cosine") lowers lr over `schedule_rounds` rounds after
    `warmup_rounds`. `keep`: the client goes on where it was, with its momentum and its place in its data, which stay in
    its memory. `precision`, `accumulate`, `checkpointing`: see `atoll.local.gradient`.

    >>> import torch
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> sgd(regression(linear(3, 1)), lr=0.5, epochs=2).batching.epochs
    2
    """
    return descent(
        Recipe(
            task,
            optimiser.sgd(momentum, nesterov, weight_decay),
            lr,
            schedule_of(schedule, schedule_rounds, warmup_rounds),
            gradient(task, precision, accumulate, checkpointing),
            Batching("train", batch_size, epochs, steps, shuffle=True, keep=keep),
            clip_norm,
        )
    )
