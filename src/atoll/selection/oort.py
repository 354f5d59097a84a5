"""Oort: clients that help the model most a second (Lai et al., OSDI 2021, arXiv:2010.06081, Algorithm 1).

U(k) = |B_k| loss_k        Util(k) = (U(k) / clip + sqrt(0.1 log R / L_k)) * (T / t_k)^alpha where t_k > T

R is the round, counted from 1, L_k the round in which k was last heard, t_k its seconds, T the preferred duration. Where we
deviate: |B| sqrt(mean loss^2) of the paper needs every example's loss; a client tells its mean, and |B| times the mean is
the same where its examples' losses are equal, and below it otherwise. As in the authors' program U is scaled by its clip (the
95th percentile), or the staleness term would weigh nothing beside it, and T is a percentile of the durations seen, which the
pacer raises. Clients never heard are explored in random order, since nothing is known of their speed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from atoll.errors import ConfigError
from atoll.selection.ledger import Ledger, read, written
from atoll.selection.rule import Call, Chosen, Selection, Told, tell
from atoll.selection.sampling import quantile, uniforms, weighted_order
from atoll.types import ClientId

CLIP = 0.95  # outliers of the utility count as this quantile of it
CUT_OFF = 0.95  # who has this share of the last admitted one's utility may be drawn, too
EXPLORATION, DECAY, LEAST = 0.9, 0.98, 0.2  # the share of a cohort that is new, its decay a round, and where that ends
PACE, STEP = 0.3, 0.05  # the first preferred duration, as a quantile of those seen, and the pacer's step


class Row(NamedTuple):
    """What is known of a client."""

    utility: float  # |B| loss, when it was last heard
    seconds: float
    last: float  # the round in which it was heard, counted from 1
    picks: float


class State(NamedTuple):
    """What Oort remembers."""

    known: Ledger = Ledger()
    gained: tuple[float, ...] = ()  # the utility of each of the last 2 * window cohorts
    pace: float = PACE


def oort(alpha: float = 2.0, window: int = 20, max_picks: int | None = None, seed: int = 0) -> Selection[State]:
    """Statistical utility times a penalty for the slow, with exploration (Lai et al. 2021, arXiv:2010.06081).

    `alpha`: how hard a client slower than the preferred duration is punished; 0: not at all, and seconds are not looked
    at. `window`: rounds after which the pacer compares what was gained, and prefers longer durations if it was less.
    `max_picks`: who was asked so often is passed over from then on (None: nobody). Exploration begins with 0.9 of a
    cohort and decays by 0.98 a round to 0.2, as in the paper.

    A client's time is the metric "seconds": simulated where the engine keeps virtual time, measured otherwise, and then
    two runs of one seed may choose differently.

    >>> rule = oort()
    >>> one, two = {"loss": 1.0, "examples": 10, "seconds": 1.0}, {"loss": 2.0, "examples": 10, "seconds": 1.0}
    >>> state = rule.observe(rule.init(), Told(0, ["a", "b"], ["a", "b"], [one, two]))
    >>> [row for row in state.known.values.tolist()], state.gained
    ([[10.0, 1.0, 1.0, 1.0], [20.0, 1.0, 1.0, 1.0]], (30.0,))
    """
    if alpha < 0 or window < 1 or (max_picks is not None and max_picks < 1):
        raise ConfigError(
            f"oort alpha = {alpha}, window = {window}, max_picks = {max_picks}: alpha 0 or more, the others 1 or more"
        )

    def order(state: State, call: Call) -> Chosen[State]:
        rows = {client: Row(*row) for client, row in read(state.known).items()}
        barred = {c for c, row in rows.items() if max_picks is not None and row.picks >= max_picks}
        known = [c for c in call.candidates if c in rows and c not in barred]
        new = [c for c in call.candidates if c not in rows]
        explored = min(round(exploration(call.round) * call.wanted), len(new))
        exploited = min(call.wanted - explored, len(known))
        explored = min(call.wanted - exploited, len(new))
        util = utilities(rows, call.round + 1, alpha, state.pace)
        best = sorted(known, key=lambda c: -util[c])
        drawn = _admitted(best, util, exploited, uniforms(len(best), seed, "selection", "oort", call.round))
        left = set(best) - set(drawn)
        spare = [*(c for c in best if c in left), *new[explored:]]  # they stand in for who fails
        return Chosen([*drawn, *new[:explored], *spare, *(c for c in call.candidates if c in barred)], state)

    def observe(state: State, told: Told) -> State:
        rows = {client: Row(*row) for client, row in read(state.known).items()}
        heard = tell(told, "loss", "examples", *(["seconds"] if alpha else []))
        for client in told.asked:
            if client in rows and client not in heard:
                rows[client] = rows[client]._replace(picks=rows[client].picks + 1)
        for client, (loss, examples, *seconds) in heard.items():
            picks = rows[client].picks if client in rows else 0.0
            rows[client] = Row(examples * max(loss, 0.0), seconds[0] if seconds else 0.0, told.round + 1, picks + 1)
        gained = (*state.gained, math.fsum(rows[c].utility for c in heard))[-2 * window :]
        return State(written(rows), gained, paced(state.pace, gained, told.round + 1, window))

    needs = frozenset({"loss", "examples", "seconds"} if alpha else {"loss", "examples"})
    return Selection("oort", State, order, observe, needs)


def exploration(round: int) -> float:
    """The share of a cohort that is new, after so many rounds.

    >>> exploration(0), round(exploration(1), 3), exploration(500)
    (0.9, 0.882, 0.2)
    """
    return max(EXPLORATION * DECAY**round, LEAST)


def utilities(rows: dict[ClientId, Row], round: int, alpha: float, pace: float) -> dict[ClientId, float]:
    """Util(k) of each client heard so far, in round number `round`.

    >>> round(utilities({"a": Row(4.0, 1.0, 1.0, 1.0)}, 2, 2.0, PACE)["a"], 4)  # 1 + sqrt(0.1 log 2)
    1.2633
    """
    if not rows:
        return {}
    clip = quantile([row.utility for row in rows.values()], CLIP)
    preferred_s = quantile([row.seconds for row in rows.values()], min(pace, 1.0))
    util = {}
    for client, row in rows.items():
        stale = math.sqrt(0.1 * math.log(round) / row.last)
        slow = (preferred_s / row.seconds) ** alpha if row.seconds > preferred_s else 1.0
        util[client] = ((min(row.utility, clip) / clip if clip > 0 else 0.0) + stale) * slow
    return util


def paced(pace: float, gained: tuple[float, ...], round: int, window: int) -> float:
    """The pacer: every `window` rounds a longer duration is preferred if the last window gained less than the one before.

    >>> paced(0.3, (5.0, 5.0, 4.0, 4.0), 4, 2), paced(0.3, (4.0, 4.0, 5.0, 5.0), 4, 2)
    (0.35, 0.3)
    """
    due = round % window == 0 and len(gained) == 2 * window
    return min(pace + STEP, 1.0) if due and math.fsum(gained[:window]) > math.fsum(gained[window:]) else pace


def _admitted(best: list[ClientId], util: dict[ClientId, float], n: int, draws: list[float]) -> list[ClientId]:
    """n clients drawn by utility among those that reach the cut-off."""
    if n == 0:
        return []
    least = CUT_OFF * util[best[n - 1]]
    admitted = [c for c in best if util[c] >= least]
    return [admitted[i] for i in weighted_order([util[c] for c in admitted], draws[: len(admitted)])[:n]]
