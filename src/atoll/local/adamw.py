"""Local AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 2): the usual choice for transformers."""

from __future__ import annotations

from atoll.local import optimiser
from atoll.local.descent import Carry, Recipe, descent
from atoll.local.gradient import Precision, gradient
from atoll.local.schedule import schedule as schedule_of
from atoll.types import Batching, Local, Task


def adamw(
    task: Task,
    lr: float = 3e-4,
    batch_size: int | None = 10,
    epochs: int = 1,
    steps: int | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    clip_norm: float | None = None,
    schedule: str = "constant",
    schedule_rounds: int | None = None,
    warmup_rounds: int = 0,
    precision: Precision = "fp32",
    accumulate: int = 1,
    checkpointing: bool = False,
) -> Local[Carry]:
    """AdamW from fresh moments in each round; the payload is y - w, its weight the examples seen.

    Options as in `atoll.local.sgd`.

    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> adamw(regression(linear(3, 1)), steps=4).descent.optimiser
    'adamw'
    """
    return descent(
        Recipe(
            task,
            optimiser.adamw(b1, b2, eps, weight_decay),
            lr,
            schedule_of(schedule, schedule_rounds, warmup_rounds),
            gradient(task, precision, accumulate, checkpointing),
            Batching("train", batch_size, epochs, steps, shuffle=True),
            clip_norm,
        )
    )
