"""TiFL: a cohort from one tier of equally fast clients (Chai et al., HPDC 2020, arXiv:2001.09249, Algorithm 2).

Tiers are equal parts of the clients heard so far by their mean seconds. Where we deviate: the paper profiles all clients
before training; here the ones not yet heard are profiled by training, in rounds drawn in proportion to their number. And a
tier is judged by its clients' last training losses, not by their accuracy on test data of their own.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal, NamedTuple

from atoll.errors import ConfigError
from atoll.selection.ledger import Ledger, read, written
from atoll.selection.rule import Call, Chosen, Selection, Told, tell
from atoll.selection.sampling import quantile, uniforms, weighted_order
from atoll.types import ClientId


class Row(NamedTuple):
    """What is known of a client."""

    seconds: float  # mean of its rounds
    times: float  # rounds in which it was heard
    loss: float  # when it was last heard


class State(NamedTuple):
    """What TiFL remembers."""

    known: Ledger = Ledger()
    credits: tuple[int, ...] = ()  # rounds left to each tier; empty: without end
    chances: tuple[float, ...] = ()  # of each tier; empty: all alike
    tier: int = -1  # of the last round; -1: it profiled
    before: tuple[float, ...] = ()  # the tiers' losses at the last review


def tifl(
    tiers: int = 5,
    choice: Literal["adaptive", "uniform"] = "adaptive",
    interval: int = 10,
    credits: int | None = None,
    seed: int = 0,
) -> Selection[State]:
    """A cohort from one tier of equally fast clients, so that nobody waits for the slow (Chai et al. 2020, arXiv:2001.09249).

    `choice`: "uniform" draws a tier alike; "adaptive" reviews every `interval` rounds, and where the loss of the last
    tier has not fallen since, tiers are drawn in proportion to their loss from then on. `credits`: a tier may be chosen
    that often (None: without end); when all are spent every tier may be chosen again. A tier with too few candidates is
    filled up from the next nearest in speed. Times are the metric "seconds", as for `oort`.

    >>> rule = tifl(tiers=2, choice="uniform")
    >>> told = Told(0, [], list("abcd"), [{"seconds": float(s), "loss": 1.0} for s in (9, 1, 8, 2)])
    >>> sorted(rule.order(rule.observe(rule.init(), told), Call(1, list("abcd"), 2)).clients[:2]) in (["a", "c"], ["b", "d"])
    True
    """
    if choice not in ("adaptive", "uniform"):
        raise ConfigError(f"tifl choice = {choice!r}: must be 'adaptive' or 'uniform'")
    if tiers < 1 or interval < 1 or (credits is not None and credits < 1):
        raise ConfigError(f"tifl tiers = {tiers}, interval = {interval}, credits = {credits}: must be 1 or more")

    def init() -> State:
        return State(credits=() if credits is None else (credits,) * tiers)

    def order(state: State, call: Call) -> Chosen[State]:
        rows = {client: Row(*row) for client, row in read(state.known).items()}
        new = [c for c in call.candidates if c not in rows]
        draws = uniforms(1 + tiers, seed, "selection", "tifl", call.round)
        if draws[0] * len(call.candidates) < len(new) or not call.candidates:
            return Chosen([*new, *(c for c in call.candidates if c in rows)], state._replace(tier=-1))
        of = tiers_of(rows, tiers)
        present = {of[c] for c in call.candidates if c in rows}
        rich = [t for t in present if not state.credits or state.credits[t] > 0] or list(present)
        weights = [(state.chances[t] if state.chances else 1.0) if t in rich else 0.0 for t in range(tiers)]
        if not any(weights):
            weights = [float(t in rich) for t in range(tiers)]
        tier = weighted_order(weights, draws[1:])[0]
        left = tuple(max(n - (t == tier), 0) for t, n in enumerate(state.credits))
        known = sorted((c for c in call.candidates if c in rows), key=lambda c: abs(of[c] - tier))  # stable: random within
        return Chosen([*known, *new], state._replace(credits=left, tier=tier))

    def observe(state: State, told: Told) -> State:
        rows = {client: Row(*row) for client, row in read(state.known).items()}
        for client, (seconds, loss) in tell(told, "seconds", "loss").items():
            mean_s, times, _ = rows.get(client, Row(0.0, 0.0, 0.0))
            rows[client] = Row((mean_s * times + seconds) / (times + 1.0), times + 1.0, loss)
        state = state._replace(known=written(rows))
        if choice == "uniform" or (told.round + 1) % interval or not rows:
            return state
        return reviewed(state, losses_of(rows, tiers))

    return Selection("tifl", init, order, observe, frozenset({"loss", "seconds"}))


def tiers_of(rows: dict[ClientId, Row], tiers: int) -> dict[ClientId, int]:
    """The tier of each client, 0 the fastest: equal parts by seconds; equal times share a tier.

    >>> tiers_of({"a": Row(9.0, 1.0, 0.0), "b": Row(1.0, 1.0, 0.0), "c": Row(8.0, 1.0, 0.0), "d": Row(2.0, 1.0, 0.0)}, 2)
    {'a': 1, 'b': 0, 'c': 1, 'd': 0}
    """
    seconds = [row.seconds for row in rows.values()]
    borders = [quantile(seconds, i / tiers) for i in range(1, tiers)] if seconds else []
    return {client: bisect_right(borders, row.seconds) for client, row in rows.items()}


def losses_of(rows: dict[ClientId, Row], tiers: int) -> tuple[float, ...]:
    """The mean of the last losses of each tier's clients, 0 for a tier without any."""
    of = tiers_of(rows, tiers)
    inside: list[list[float]] = [[row.loss for c, row in rows.items() if of[c] == t] for t in range(tiers)]
    return tuple(math.fsum(losses) / len(losses) if losses else 0.0 for losses in inside)


def reviewed(state: State, losses: Sequence[float]) -> State:
    """New chances, in proportion to the tiers' losses, where the last tier's loss has not fallen since the last review.

    >>> reviewed(State(tier=0, before=(1.0, 3.0)), (1.0, 3.0)).chances
    (0.25, 0.75)
    >>> reviewed(State(tier=0, before=(2.0, 3.0)), (1.0, 3.0)).chances
    ()
    """
    stuck = state.tier >= 0 and bool(state.before) and losses[state.tier] >= state.before[state.tier]
    whole = math.fsum(max(loss, 0.0) for loss in losses)
    chances = tuple(max(loss, 0.0) / whole for loss in losses) if stuck and whole > 0 else state.chances
    return state._replace(chances=chances, before=tuple(losses))
