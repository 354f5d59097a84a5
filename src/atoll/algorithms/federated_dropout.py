"""Federated dropout (Caldas et al. 2018, arXiv:1812.07210): clients train smaller dense models cut from the global one.

w_k = w without the units that k was not given        w[i] += mean over those k that held i of (y_k - w_k)[i]

The client's module computes at the small size, and only the small tensors cross the network, both ways. What nobody held
stays. Every update is weighed where it was held, as in HeteroFL (arXiv:2010.01264, eq. 3).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Literal, NamedTuple

import torch

from atoll import rng, tree
from atoll import server_opt as opt
from atoll.aggregators.held import Placed, held
from atoll.aggregators.mean import mean
from atoll.errors import ConfigError
from atoll.models import shapes, units
from atoll.models.units import Kept, Units
from atoll.server_opt import ServerOpt
from atoll.types import Algorithm, Assignment, Batch, ClientId, Local, Reduced, Request, Seen, Task, Tree, Update

TRAFFIC = {"train": {"narrow": "keep"}}  # both ways the model that has so much of each hidden layer


class State(NamedTuple):
    """The global model, the server optimiser's state, and the rounds that are finished."""

    params: Tree
    opt: Any
    round: int


def federated_dropout(
    local: Local[Any],
    task: Task,
    keep: float = 0.5,
    draw: Literal["client", "round"] = "client",
    scale: bool = True,
    weights: Literal["examples", "uniform"] = "examples",
    server_opt: ServerOpt | None = None,
    seed: int = 0,
) -> Algorithm[State]:
    """Each client trains a random `keep` of every hidden layer's units; the server puts them back (arXiv:1812.07210).

    `draw`: each client its own units, or all clients of a round the same ones, whose sum a secure sum may take.
    `scale`: in training a layer's inputs are multiplied by all units over those present, dropout's 1 / keep. Which
    units there are: `atoll.models.units.hidden_units`. keep = 1 is FedAvg.

    Raises ConfigError where keep is not in (0, 1], or the model has no hidden units that are known.

    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.mlp import mlp
    >>> from atoll.tasks.classification import classification
    >>> task = classification(mlp(4, [6], 2))
    >>> algorithm = federated_dropout(sgd(task), task, keep=0.5)
    >>> state = algorithm.init(dict(task.module.named_parameters()))
    >>> request = next(algorithm.round(state, ["a", "b"]))
    >>> [tuple(x.shape) for x in request.tree_for("a").values()]
    [(3, 4), (3,), (2, 3), (2,)]
    """
    if not 0 < keep <= 1:
        raise ConfigError(f"federated_dropout keep = {keep}: must be above 0 and at most 1")
    if draw not in ("client", "round"):
        raise ConfigError(f"federated_dropout draw = {draw!r}: must be 'client' or 'round'")
    groups, step_by = units.hidden_units(task.module), opt.past(server_opt or opt.sgd(), local.averaged)
    fold = _scaled(local, task, groups) if scale and keep < 1 else local

    def given(round_: int, client: ClientId) -> Kept:
        return drawn(groups, keep, seed, round_, *([client] if draw == "client" else []))

    def round(state: State, clients: Sequence[ClientId]) -> Generator[Request, Reduced, State]:
        params, common = state.params, given(state.round, ClientId(""))
        small = units.cut(groups, common, params)  # the others' have these shapes too

        def place(update: Update) -> Placed:
            kept = given(update.round, update.client)
            return Placed(units.put(groups, kept, update.tree, tree.zeros(params)), units.held(groups, kept, params))

        def own(client: ClientId) -> Tree:
            return units.cut(groups, given(state.round, client), params)

        if draw == "client":
            delta = (yield Request("train", clients, own, held(place, weights), like=small, by_client=draw == "client")).tree
        else:  # of another round's units nothing can be averaged with this one's
            reduced = yield Request("train", clients, lambda _: small, mean(weights), fresh=True, like=small)
            delta = units.put(groups, common, reduced.tree, tree.zeros(params))
        step, after = step_by.update(delta, state.opt)
        return State(tree.add(params, step), after, state.round + 1)

    return Algorithm(lambda w: State(tree.pack(w), step_by.init(w), 0), round, lambda state: state.params, {"train": fold})


def _scaled(local: Local[Any], task: Task, groups: Sequence[Units]) -> Local[Any]:
    """The same fold; while it computes, and then alone, layers make up for units that are not there."""
    units.scalable(task.module, groups)

    def step(carry: Any, batch: Batch) -> Any:
        with units.scaling():
            return local.step(carry, batch)

    def final(assignment: Assignment, carry: Any, seen: Seen) -> tuple[Update, Tree]:
        with units.scaling():  # a user's own loop runs here
            return local.final(assignment, carry, seen)

    return local._replace(step=step, final=final)


def drawn(groups: Sequence[Units], keep: float, seed: int, *place: object) -> dict[str, torch.Tensor]:
    """A random `keep` of the units of each group, one of them at least.

    >>> from atoll.models.mlp import mlp
    >>> {name: len(x) for name, x in drawn(units.hidden_units(mlp(4, [6, 3], 2)), 0.5, 7, "round 1").items()}
    {'hidden1': 3, 'hidden2': 2}
    """

    def draw(group: Units) -> torch.Tensor:
        return rng.permutation(group.size, seed, "units", group.name, *place)[: shapes.present(group.size, keep)].sort().values

    return {group.name: draw(group) for group in groups}
