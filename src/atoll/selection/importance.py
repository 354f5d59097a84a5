"""Importance sampling of clients with unbiased weights (Chen, Horvath and Richtarik 2020, arXiv:2010.13723, equation 7).

pi_k = min(1, c |U_k|) with sum_k pi_k = m, U_k = w_k D_k        mean = 1/m sum_{k in S} (m / (N pi_k)) (w_k / w) D_k

The paper has every candidate compute its update and then sends the chosen ones; here a client's norm is that of its last
update, which costs no work, and who was never heard counts as the mean of those who were. Any probabilities above 0 leave
the mean unbiased; those of the paper give it the least variance. The paper draws each client independently, we draw by
systematic sampling, which has the same probabilities and a cohort of fixed size.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from atoll.errors import ConfigError
from atoll.selection.ledger import Ledger, read, written
from atoll.selection.rule import Call, Chosen, Selection, Shares, Told, tell
from atoll.selection.sampling import inclusion, systematic, uniforms
from atoll.types import Metrics, Update


class Row(NamedTuple):
    """What is known of a client."""

    score: float  # the norm of its last update, or its last loss
    weight: float  # Update.weight when it was last heard


def importance(score: Literal["norm", "loss"] = "norm", uniform_share: float = 0.1, seed: int = 0) -> Selection[Ledger]:
    """Clients are drawn in proportion to their last update's norm, or loss, and weighed by the inverse (arXiv:2010.13723).

    Where the algorithm's mean goes by examples, so does the score: examples times norm. `uniform_share` mixes the score
    with its mean, so that no client's update is scaled up by more than 1 / uniform_share; 1 is uniform sampling. With
    "norm" a client tells one number more, the norm of its update before any transform.

    The weighted mean is unbiased over the candidates, up to the one factor (mean weight of all) / (mean weight of those
    heard so far), which is 1 where weights are equal, under uniform means, and as soon as everybody was heard once. The
    first cohort is uniform and averaged as without the rule. Nobody replaces who fails: the probability of a stand-in
    is not known. Needs a synchronous policy and an aggregator that is a sum.

    >>> rule = importance("loss", uniform_share=0.01)
    >>> heard = Told(0, [], ["a", "b"], [{"loss": 3.0, "update_weight": 1.0}, {"loss": 1.0, "update_weight": 1.0}])
    >>> chosen = rule.order(rule.observe(rule.init(), heard), Call(1, ["a", "b"], 1))
    >>> len(chosen.clients), chosen.shares.typical_weight
    (1, 1.0)
    """
    if score not in ("norm", "loss"):
        raise ConfigError(f"importance score = {score!r}: must be 'norm' or 'loss'")
    if not 0 < uniform_share <= 1:
        raise ConfigError(f"importance uniform_share = {uniform_share}: must be above 0 and at most 1")

    def order(state: Ledger, call: Call) -> Chosen[Ledger]:
        rows = {client: Row(*row) for client, row in read(state).items()}
        if not rows:
            return Chosen(call.candidates, state)
        typical = math.fsum(row.weight for row in rows.values()) / len(rows)
        of = {c: r.score * (r.weight / typical if call.weighted and typical > 0 else 1.0) for c, r in rows.items()}
        unheard = math.fsum(of.values()) / len(of)
        scores = [of.get(c, unheard) for c in call.candidates]
        middle = math.fsum(scores) / len(scores) if scores else 0.0
        chances = inclusion([uniform_share * middle + (1.0 - uniform_share) * s for s in scores], call.wanted)
        drawn = systematic(chances, uniforms(1, seed, "selection", "importance", call.round)[0])
        wanted, among = min(call.wanted, len(scores)), len(scores)
        factors = {call.candidates[i]: wanted / (among * chances[i]) for i in drawn}
        return Chosen([call.candidates[i] for i in drawn], state, Shares(factors, typical))

    def observe(state: Ledger, told: Told) -> Ledger:
        return written({**read(state), **tell(told, "update_norm" if score == "norm" else "loss", "update_weight")})

    needs = frozenset({"loss"}) if score == "loss" else frozenset[str]()
    return Selection("importance", Ledger, order, observe, needs, measure=_normed if score == "norm" else _weight, unbiased=True)


def _weight(update: Update) -> Metrics:
    return {"update_weight": update.weight}


def _normed(update: Update) -> Metrics:
    from atoll import tree

    return {"update_weight": update.weight, "update_norm": float(tree.norm(update.tree)) if update.tree else 0.0}
