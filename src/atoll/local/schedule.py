"""Learning rates over a run, as a factor on the peak rate: a number a round, or a tensor a step of a kept optimiser."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from atoll.errors import ConfigError


class Schedule(NamedTuple):
    """A linear warm-up, then constant, or down to 0 at `length` in a line or a half cosine; both in rounds or in steps."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    length: int | None = None
    warmup: int = 0
    unit: Literal["rounds", "steps"] = "rounds"

    def factor(self, round: int) -> float:
        """The factor in a round, counted from 0; within a round it does not change.

        >>> [Schedule("linear", 4).factor(r) for r in range(4)]
        [1.0, 0.75, 0.5, 0.25]
        >>> [Schedule("constant", warmup=2).factor(r) for r in range(3)]
        [0.5, 1.0, 1.0]
        """
        if self.unit == "steps":
            return 1.0
        if round < self.warmup:
            return (round + 1) / self.warmup
        if self.name == "constant" or self.length is None:
            return 1.0
        done = min((round - self.warmup) / max(self.length - self.warmup, 1), 1.0)
        return 1.0 - done if self.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))

    def at(self, step: Tensor) -> Tensor | None:
        """The factor of a step, counted from 1 in a 0-d tensor, so that a captured step follows it; None: always 1.

        >>> [round(Schedule("cosine", 6, 2, "steps").at(torch.tensor(float(n))).item(), 3) for n in range(1, 7)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
        """
        if self.unit == "rounds":
            return None
        warm = (step / max(self.warmup, 1)).clamp(max=1.0)
        if self.name == "constant" or self.length is None:
            return warm
        done = ((step - (1 + self.warmup)) / max(self.length - self.warmup, 1)).clamp(0.0, 1.0)
        return warm * (1.0 - done if self.name == "linear" else 0.5 * (1.0 + torch.cos(math.pi * done)))


def schedule(name: str, rounds: int | None, warmup_rounds: int, steps: int | None = None, warmup_steps: int = 0) -> Schedule:
    """A checked Schedule, in rounds or in steps.

    >>> schedule("cosine", None, 0)
    Traceback (most recent call last):
    atoll.errors.ConfigError: schedule 'cosine' needs schedule_rounds: the number of rounds over which the rate falls to 0
    """
    if name not in ("constant", "linear", "cosine"):
        raise ConfigError(f"schedule = {name!r}: must be constant, linear or cosine")
    if steps or warmup_steps:
        if rounds or warmup_rounds:
            raise ConfigError(
                "a schedule counts rounds or steps, not both: leave out schedule_rounds and warmup_rounds, or the steps"
            )
        if name != "constant" and not steps:
            raise ConfigError(f"schedule {name!r} needs schedule_steps: the number of steps over which the rate falls to 0")
        return Schedule(name, steps, warmup_steps, "steps")  # type: ignore[arg-type]
    if name != "constant" and not rounds:
        raise ConfigError(f"schedule {name!r} needs schedule_rounds: the number of rounds over which the rate falls to 0")
    return Schedule(name, rounds, warmup_rounds)  # type: ignore[arg-type]
