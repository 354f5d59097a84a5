"""Power of choice (Cho, Wang and Joshi 2020, arXiv:2010.01243, Algorithm 1): of d candidates, those with the largest loss.

pi_pow-d asks d candidates for F_k(w) before every round; pi_rpow-d takes the loss that each told when it last trained,
infinite for who never did. The paper draws the candidates in proportion to their data, which a server does not know
beforehand; we draw them uniformly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from atoll.errors import ConfigError
from atoll.selection.ledger import Ledger, read, written
from atoll.selection.rule import Call, Chosen, Probe, Selection, Told, tell
from atoll.types import ClientId, Task

# Before every round the model goes to `d` clients (default: twice the cohort), unless their last losses are taken.
TRAFFIC = {"probe": {"clients": "d", "cohorts": 2, "when": {"losses": "asked"}}}


def power_of_choice(
    task: Task | None = None, d: int | None = None, losses: Literal["asked", "last"] = "asked", batch_size: int = 256
) -> Selection[Ledger]:
    """Of d random candidates, those with the largest loss train (Cho et al. 2020, arXiv:2010.01243).

    `d` (default: twice the cohort): more favours high losses more; d equal to the cohort is uniform sampling. `losses`:
    "asked" sends d candidates the current model to judge it on their training data, in batches of `batch_size`
    (pi_pow-d); "last" takes the training loss that each told last, and sends nothing (pi_rpow-d). Losses that are equal
    stay in random order. Favouring high losses biases the mean towards them, which is the rule's purpose.

    Raises ConfigError where `losses` is "asked" and there is no task to judge by.

    >>> rule = power_of_choice(losses="last", d=2)
    >>> after = rule.observe(rule.init(), Told(0, [], ["a", "b"], [{"loss": 1.0}, {"loss": 2.0}]))
    >>> rule.order(after, Call(1, ["a", "b", "c"], 1)).clients
    ['b', 'a', 'c']
    """
    if losses not in ("asked", "last"):
        raise ConfigError(f"power_of_choice losses = {losses!r}: must be 'asked' or 'last'")
    if d is not None and d < 1:
        raise ConfigError(f"power_of_choice d = {d}: must be 1 or more")

    def drawn(call: Call) -> Sequence[ClientId]:
        if d is not None and d < call.wanted:
            raise ConfigError(f"power_of_choice d = {d} is below the {call.wanted} clients of a round: raise d, or ask fewer")
        return call.candidates[: d or 2 * call.wanted]

    def order(state: Ledger, call: Call) -> Chosen[Ledger]:
        first = drawn(call)
        if losses == "last":
            rows = read(state)
            loss = {c: rows.get(c, (math.inf,))[0] for c in first}
        else:
            loss = {c: call.losses.get(c, -math.inf) for c in first}  # who did not even say its loss stands in at best
        return Chosen([*sorted(first, key=lambda c: -loss[c]), *call.candidates[len(first) :]], state)

    def observe(state: Ledger, told: Told) -> Ledger:
        return state if losses == "asked" else written({**read(state), **tell(told, "loss")})

    needs, probe = frozenset({"loss"}) if losses == "last" else frozenset[str](), None
    if losses == "asked":
        if task is None:
            raise ConfigError("power_of_choice asks candidates for their loss: give it the task, or set losses = 'last'")
        from atoll.local.evaluate import evaluate

        probe = Probe(evaluate(task, batch_size, "train"), drawn)
    return Selection("power_of_choice", Ledger, order, observe, needs, probe)
