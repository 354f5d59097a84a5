"""Participation as even as possible: who was asked least comes first, or draws a ticket that weighs 1 / (1 + picks).

Least first is max-min fair: while every client is a candidate in every round and the policy is synchronous, the most and
the least asked differ by one round at most; a client that was away comes first until it has caught up. Fairness of the
model, not of the turns, is another matter: see `qfedavg`.
"""

from __future__ import annotations

from typing import Literal

from atoll.errors import ConfigError
from atoll.selection.ledger import Ledger, read, written
from atoll.selection.rule import Call, Chosen, Selection, Told
from atoll.selection.sampling import uniforms, weighted_order


def fair(by: Literal["least", "lottery"] = "least", seed: int = 0) -> Selection[Ledger]:
    """Even participation: the least asked first, or by a lottery in which each client's weight is 1 / (1 + picks).

    "least": picks differ by at most one where all clients are always candidates (the greedy rule: nobody is asked a
    second time before everybody was asked once). "lottery" keeps cohorts random and evens out in the long run only; its
    weights are those of inverse-frequency sampling. To be asked counts, so that a client that always fails holds no place.

    >>> rule = fair()
    >>> after = rule.observe(rule.init(), Told(0, ["a"], ["a"], [{}]))
    >>> rule.order(after, Call(1, ["a", "b", "c"], 2)).clients
    ['b', 'c', 'a']
    """
    if by not in ("least", "lottery"):
        raise ConfigError(f"fair by = {by!r}: must be 'least' or 'lottery'")

    def order(state: Ledger, call: Call) -> Chosen[Ledger]:
        rows = read(state)
        picks = {c: rows.get(c, (0.0,))[0] for c in call.candidates}
        if by == "least":
            return Chosen(sorted(call.candidates, key=picks.__getitem__), state)  # stable: ties stay in random order
        draws = uniforms(len(picks), seed, "selection", "fair", call.round)
        drawn = weighted_order([1.0 / (1.0 + picks[c]) for c in call.candidates], draws)
        return Chosen([call.candidates[i] for i in drawn], state)

    def observe(state: Ledger, told: Told) -> Ledger:
        rows = read(state)
        for client in dict.fromkeys([*told.asked, *told.clients]):
            rows[client] = (rows.get(client, (0.0,))[0] + 1.0,)
        return written(rows)

    return Selection("fair", Ledger, order, observe)
