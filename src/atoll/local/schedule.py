"""Learning rates over the rounds of a run, as a factor on the peak rate; within a round the rate is constant."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from atoll.errors import ConfigError


class Schedule(NamedTuple):
    """A linear warm-up over `warmup_rounds`, then constant, or down to 0 at `rounds` in a line or a half cosine."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    rounds: int | None = None
    warmup_rounds: int = 0

    def factor(self, round: int) -> float:
        """The factor in a round, counted from 0.

        >>> [Schedule("linear", 4).factor(r) for r in range(4)]
        [1.0, 0.75, 0.5, 0.25]
        >>> [Schedule("constant", warmup_rounds=2).factor(r) for r in range(3)]
        [0.5, 1.0, 1.0]
        """
        if round < self.warmup_rounds:
            return (round + 1) / self.warmup_rounds
        if self.name == "constant" or self.rounds is None:
            return 1.0
        done = min((round - self.warmup_rounds) / max(self.rounds - self.warmup_rounds, 1), 1.0)
        return 1.0 - done if self.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def schedule(name: str, rounds: int | None, warmup_rounds: int) -> Schedule:
    """A checked Schedule.

    >>> schedule("cosine", None, 0)
    Traceback (most recent call last):
    atoll.errors.ConfigError: schedule 'cosine' needs schedule_rounds: the number of rounds over which the rate falls to 0
    """
    if name not in ("constant", "linear", "cosine"):
        raise ConfigError(f"schedule = {name!r}: must be constant, linear or cosine")
    if name != "constant" and not rounds:
        raise ConfigError(f"schedule {name!r} needs schedule_rounds: the number of rounds over which the rate falls to 0")
    return Schedule(name, rounds, warmup_rounds)  # type: ignore[arg-type]
