"""FedDST (Bibikar et al. 2022, arXiv:2112.09824): a sparse model in every round, its mask readjusted every few rounds.

w, mask    the server's; w is 0 where the mask is       clients train w under the mask and send their change of what is kept
readjust   of each layer drop the smallest |w| that are kept, grow the largest |mean gradient| of what is not, at 0

Deviation: there each client readjusts its own mask, and the server reconciles them. Here clients send the gradients (the few
largest of what is pruned) and the server decides, as in PruneFL (Jiang et al. 2019, arXiv:1909.12326, section IV), so that all
train under one mask: only kept values cross the network, and their sum is a plain sum.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any, Literal, NamedTuple

import torch

from atoll import tree
from atoll.aggregators.mean import mean
from atoll.algorithms import masks as masks_
from atoll.errors import ConfigError, TreeError
from atoll.models import sparsity, units
from atoll.types import Algorithm, ClientId, Local, Reduced, Request, Task, Tree, Update

# Both ways what is kept, and down a bit an entry when the mask is new; every few rounds that, for a few gradients.
TRAFFIC = {"train": {"sparse": "train"}, "grow": {"sparse": "grow"}}


class State(NamedTuple):
    """The global model, zero where it is pruned, and its mask."""

    params: Tree
    mask: Tree  # bool, of the tensors that are pruned
    told: tuple[ClientId, ...]  # who remembers this mask
    since: int  # the first round of this mask
    round: int  # rounds that are finished


def feddst(
    local: Local[Any],
    task: Task,
    density: float = 0.2,
    every: int = 10,
    exchange: float = 0.2,
    until: int | None = None,
    spread: Literal["erk", "uniform"] = "erk",
    shrink: bool = True,
    weights: Literal["examples", "uniform"] = "examples",
    batch_size: int = 256,
) -> Algorithm[State]:
    """One sparse model, its mask issued by the server and readjusted by magnitude and gradient (arXiv:2112.09824).

    `density`: of all weights (tensors of two axes and more), spread over the layers by `spread`. Every `every` rounds the
    share `exchange` of a layer's kept entries is exchanged, falling to 0 at round `until` in a half cosine (None: constant).
    `shrink`: hidden units that nothing reads any more are not sent and not computed (`atoll.models.units.alive`).
    density = 1 is FedAvg.

    Raises ConfigError where the local work has no gradient to mask, or a number is out of range.

    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.mlp import mlp
    >>> from atoll.tasks.classification import classification
    >>> task = classification(mlp(4, [8], 2))
    >>> algorithm = feddst(sgd(task), task, density=0.25)
    >>> state = algorithm.init(dict(task.module.named_parameters()))
    >>> sum(int(mask.sum()) for mask in state.mask.values())
    12
    """
    if not 0 < density <= 1 or not 0 <= exchange < 1 or every < 1:
        told = f"density = {density}, exchange = {exchange}, every = {every}"
        raise ConfigError(f"feddst {told}: must be in (0, 1], in [0, 1), and 1 round or more")
    axes, reduce, groups = masks_.prunable(task), mean(weights), _groups(task) if shrink else ()
    fold, growth = masks_.masked(local, axes, "feddst"), masks_.growth(task, batch_size, axes)

    def init(w: Tree) -> State:
        count = sparsity.counts({name: w[name].shape for name in axes}, density, spread)
        mask = masks_.largest({name: w[name].detach().abs() for name in axes}, count)
        return State(_pruned(tree.pack(w), mask), tree.pack(mask), (), 0, 0)

    def round(state: State, clients: Sequence[ClientId]) -> Generator[Request, Reduced, State]:
        kept = units.alive(groups, state.mask)
        small = units.cut(groups, kept, state.mask)
        values = masks_.thin(units.cut(groups, kept, state.params), small)
        sent, told = {**values, masks_.SINCE: torch.tensor(state.since, dtype=torch.int32)}, set(state.told)
        newly = {**sent, **masks_.written(small)}

        def current(update: Update) -> Update:
            if update.round < state.since:
                raise TreeError(f"it was trained under the mask of round {update.round + 1}, and the mask is another since")
            return update

        reduced = yield Request(
            "train", clients, lambda c: sent if c in told else newly, reduce, like=values, decode=current, by_client=True
        )
        learnt = masks_.fill(reduced.tree, small) if reduced.tree else {}
        step = units.put(groups, kept, learnt, tree.zeros(state.params))
        heard = set(reduced.clients)
        last = max((i for i, client in enumerate(clients) if client in heard), default=0)
        lost = set(clients[:last]) - heard  # asked, and silent: perhaps they have forgotten the mask
        after = state._replace(
            params=tree.add(state.params, step), told=tuple(sorted((told - lost) | heard)), round=state.round + 1
        )
        if after.round % every == 0 and heard:
            after = yield from readjust(after, list(dict.fromkeys(reduced.clients)))
        return after

    def readjust(state: State, clients: Sequence[ClientId]) -> Generator[Request, Reduced, State]:
        most = _exchanged(state, exchange if until is None else _cosine(exchange, state.round, until))
        if not any(most.values()):
            return state
        numbers = {masks_.MOST: torch.tensor(list(most.values()))}
        sent = {**masks_.thin(state.params, state.mask), **masks_.written(state.mask), **numbers}

        def decode(update: Update) -> Update:
            return masks_.grown(update, state.mask, most)

        reduced = yield Request("grow", clients, lambda _: sent, mean(), True, len(clients), state.mask, decode=decode)
        mask = exchanged(state.params, state.mask, reduced.tree, most)
        return state._replace(params=_pruned(state.params, mask), mask=tree.pack(mask), told=(), since=state.round)

    return Algorithm(init, round, lambda state: state.params, {"train": fold, "grow": growth})


def exchanged(params: Tree, mask: Tree, gradient: Tree, most: dict[str, int]) -> Tree:
    """The mask after an exchange: of each tensor so many of the smallest kept entries for the pruned of the largest gradient.

    >>> mask = {"w": torch.tensor([[True, True, False, False]])}
    >>> w, g = {"w": torch.tensor([[3.0, 1.0, 0.0, 0.0]])}, {"w": torch.tensor([[0.0, 0.0, 0.5, -2.0]])}
    >>> exchanged(w, mask, g, {"w": 1})["w"].tolist()
    [[True, False, False, True]]
    """
    found = {}
    for name, before in mask.items():
        g = gradient[name].abs().masked_fill(before, 0.0)
        count = min(most[name], int((g > 0).sum()))  # where a gradient is 0 there is no reason to grow
        kept = params[name].detach().abs().masked_fill(~before, -1.0)  # below what is kept, even where that is 0
        rest = masks_.largest({name: kept}, {name: int(before.sum()) - count})
        found[name] = rest[name] | masks_.largest({name: g}, {name: count})[name]
    return found


def _groups(task: Task) -> tuple[units.Units, ...]:
    try:
        return units.hidden_units(task.module)
    except ConfigError:
        return ()  # nothing that could be left out


def _pruned(params: Tree, mask: Tree) -> Tree:
    return tree.pack({name: x.detach() * mask[name] if name in mask else x for name, x in params.items()})


def _exchanged(state: State, fraction: float) -> dict[str, int]:
    """How many entries of each tensor are to be exchanged: no more than there are pruned."""
    return {name: sparsity.exchanged(int(mask.sum()), mask.numel(), fraction) for name, mask in state.mask.items()}


def _cosine(fraction: float, round: int, until: int) -> float:
    return fraction / 2 * (1 + math.cos(math.pi * min(round / until, 1.0)))
