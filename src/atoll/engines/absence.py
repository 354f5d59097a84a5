"""Who is waited for, and for how long: each client's absence, counted only while somebody looks."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import NamedTuple

from atoll.types import ClientId

_MOST_S = 1.0  # that one look may add: in a longer gap nobody looked, and a client may have been there


class Terms(NamedTuple):
    """How long a deployed run waits for those who are not there."""

    patience_s: float = 300.0  # for a client whose site is away: then its work is lost, and rounds begin without it
    deadline_s: float = math.inf  # of a round, by the policy: between two rounds nobody is waited for longer than that
    enough: int | None = None  # clients with which a round begins, whoever else may come; None: it waits for all
    start_with: int | None = None  # sites with which the first round begins, and without which it does not; None: as any round


class Absence:
    """For how long each client has been away.

    >>> north, south = ClientId("north"), ClientId("south")
    >>> absence = Absence()
    >>> for now_s in (0.0, 0.5, 1.0):
    ...     absence.look(now_s, [north, south], {north})
    >>> absence.of(north), absence.of(south)
    (0.0, 1.0)
    """

    def __init__(self) -> None:
        self._away_s: dict[ClientId, float] = {}
        self._looked_s: float | None = None

    def look(self, now_s: float, clients: Iterable[ClientId], online: Collection[ClientId]) -> None:
        """At these clients: who is not online has been away since the last look."""
        since_s = 0.0 if self._looked_s is None else min(now_s - self._looked_s, _MOST_S)
        self._looked_s = now_s
        for client in clients:
            before_s = self._away_s.get(client)
            self._away_s[client] = 0.0 if client in online or before_s is None else before_s + since_s

    def of(self, client: ClientId) -> float:
        """Seconds; 0 for a client that is there, or was never looked at."""
        return self._away_s.get(client, 0.0)
