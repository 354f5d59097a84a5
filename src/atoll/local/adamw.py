"""Local AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 2): the usual choice for transformers."""

from __future__ import annotations

from atoll.errors import ConfigError
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
    schedule_steps: int | None = None,
    warmup_steps: int = 0,
    keep: bool = False,
    precision: Precision = "fp32",
    accumulate: int = 1,
    checkpointing: bool = False,
) -> Local[Carry]:
    """AdamW from fresh moments in each round, or from kept ones; the payload is y - w, its weight the examples seen.

    `keep`: the client goes on where it was, with its moments, its step count and its place in its data, which stay in its
    memory (DiLoCo's inner optimiser). Only then may the schedule count steps, over all rounds, in place of rounds:
    `schedule_steps`, `warmup_steps`. Other options as in `atoll.local.sgd`.

    Raises:
        ConfigError: a schedule in steps without `keep`, or in steps and in rounds; else as `atoll.local.sgd`.

    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> adamw(regression(linear(3, 1)), steps=4).descent.optimiser
    'adamw'
    """
    rate = schedule_of(schedule, schedule_rounds, warmup_rounds, schedule_steps, warmup_steps)
    if rate.unit == "steps" and not keep:
        raise ConfigError("a schedule in steps goes on from round to round, which adamw only does with keep = true")
    return descent(
        Recipe(
            task,
            optimiser.adamw(b1, b2, eps, weight_decay, rate),
            lr,
            rate,
            gradient(task, precision, accumulate, checkpointing),
            Batching("train", batch_size, epochs, steps, shuffle=True, keep=keep),
            clip_norm,
        )
    )
