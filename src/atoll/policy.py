"""When a request closes and what becomes of those who are late: the four knobs of the one driver.

Synchronous, over-selecting, deadline and buffered-asynchronous runs are four settings of `Policy`, not four
drivers (see `atoll.round`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from atoll.errors import ConfigError

Staleness: TypeAlias = Callable[[int], float]  # age in rounds -> factor on the update


def constant(age: int) -> float:
    """Stale updates count in full."""
    return 1.0


def polynomial(exponent: float = 0.5) -> Staleness:
    """(1 + age)^-exponent (FedBuff, arXiv:2106.06639; FedAsync, arXiv:1903.03934).

    >>> polynomial(0.5)(3)
    0.5
    """
    return lambda age: float((1 + age) ** -exponent)


def hinge(a: float = 10.0, b: float = 4.0) -> Staleness:
    """1 up to age b, then 1 / (a (age - b) + 1) (FedAsync, arXiv:1903.03934, section 5.2).

    >>> hinge(10, 4)(4), round(hinge(10, 4)(5), 4)
    (1.0, 0.0909)
    """
    return lambda age: 1.0 if age <= b else 1.0 / (a * (age - b) + 1)


@dataclass(frozen=True, slots=True)
class Policy:
    """How many clients work at once, and when a request has heard enough.

    `in_flight`: clients at work at the same time, None: all candidates. `close_after`: updates that close a
    request, None: all that were asked. `min_updates`: fewer than this at the close is an error. `timeout_s`: a
    request closes then with what it has. `lease_s`: an assignment unanswered, and not seen to move, for this long counts as lost.
    `refill`: every answer sends the next client to work, and who is still at work when a round closes goes on
    (asynchronous). `late`: a synchronous straggler's answer is dropped, or kept as stale for the next round.
    `staleness`: factor on an update by its age. `on_failure`: go on without the client, or stop the run.
    """

    in_flight: int | None = None
    close_after: int | None = None
    min_updates: int = 1
    timeout_s: float = math.inf
    lease_s: float = 3600.0
    refill: bool = False
    late: Literal["drop", "keep"] = "drop"
    staleness: Staleness = constant
    on_failure: Literal["drop", "stop"] = "drop"

    def __post_init__(self) -> None:
        for name in ("in_flight", "close_after", "min_updates", "timeout_s", "lease_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"policy {name} = {value}: must be above 0")
        if self.in_flight and self.close_after and self.close_after > self.in_flight and not self.refill:
            raise ConfigError(
                f"policy close_after = {self.close_after} can never be reached with in_flight = {self.in_flight}: "
                f"raise in_flight, or set refill"
            )
        if self.close_after and self.min_updates > self.close_after:
            raise ConfigError(f"policy min_updates = {self.min_updates} is above close_after = {self.close_after}")
        if self.late not in ("drop", "keep") or self.on_failure not in ("drop", "stop"):
            raise ConfigError(f"policy late = {self.late!r}, on_failure = {self.on_failure!r}: drop|keep and drop|stop")

    @property
    def exact(self) -> bool:
        """A request closes when all who were asked have answered or failed: what it folds does not depend on who is quick."""
        return not self.continues and self.timeout_s == math.inf and self.close_after in (None, self.in_flight)

    @property
    def continues(self) -> bool:
        """Work that is still under way when a round closes stays under way."""
        return self.refill or self.late == "keep"


def synchronous(
    clients_per_round: int | None = None,
    min_updates: int = 1,
    lease_s: float = 3600.0,
    on_failure: Literal["drop", "stop"] = "drop",
) -> Policy:
    """Ask a cohort and wait for all of it (None: every client).

    >>> synchronous(10).close_after
    10
    """
    return Policy(clients_per_round, clients_per_round, min_updates, lease_s=lease_s, on_failure=on_failure)


def over_selecting(
    clients_per_round: int, factor: float = 1.3, min_updates: int = 1, on_failure: Literal["drop", "stop"] = "drop"
) -> Policy:
    """Ask `factor` times the cohort and close with the first `clients_per_round` (arXiv:1902.01046, section 2).

    >>> over_selecting(10).in_flight
    13
    """
    if factor < 1:
        raise ConfigError(f"over_selecting factor = {factor}: must be 1 or more")
    asked = math.ceil(round(clients_per_round * factor, 9))  # 10 * 1.1 is a hair above 11
    return Policy(asked, clients_per_round, min_updates, on_failure=on_failure)


def deadline(
    clients_per_round: int,
    timeout_s: float,
    min_updates: int = 1,
    late: Literal["drop", "keep"] = "keep",
    staleness_exponent: float = 0.5,
    on_failure: Literal["drop", "stop"] = "drop",
) -> Policy:
    """Close at the deadline with whoever answered; by default a late answer counts, as stale, in a later round.

    >>> deadline(10, timeout_s=60).late
    'keep'
    """
    return Policy(
        clients_per_round,
        clients_per_round,
        min_updates,
        timeout_s,
        late=late,
        staleness=polynomial(staleness_exponent),
        on_failure=on_failure,
    )


def buffered(
    clients_in_flight: int,
    buffer: int = 10,
    staleness_exponent: float = 0.5,
    on_failure: Literal["drop", "stop"] = "drop",
) -> Policy:
    """FedBuff (arXiv:2106.06639): clients work all the time; the server steps at every `buffer` updates.

    >>> buffered(30, buffer=10).refill
    True
    """
    return Policy(
        clients_in_flight,
        buffer,
        refill=True,
        late="keep",
        staleness=polynomial(staleness_exponent),
        on_failure=on_failure,
    )


def hybrid(
    clients_in_flight: int,
    buffer: int = 10,
    timeout_s: float = 600.0,
    min_updates: int = 1,
    staleness_exponent: float = 0.5,
    on_failure: Literal["drop", "stop"] = "drop",
) -> Policy:
    """As `buffered`, but the server steps after `timeout_s` too, with the updates that have come: no slow hour stops the run.

    >>> hybrid(30, buffer=10, timeout_s=60).timeout_s
    60
    """
    return Policy(
        clients_in_flight,
        buffer,
        min_updates,
        timeout_s,
        refill=True,
        late="keep",
        staleness=polynomial(staleness_exponent),
        on_failure=on_failure,
    )
