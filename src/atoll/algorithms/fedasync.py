"""FedAsync and FedBuff: what an asynchronous policy folds.

FedAsync (Xie et al. 2019, arXiv:1903.03934, Algorithm 1): w = (1 - a_s) w + a_s y, a_s = alpha s(age).
FedBuff (Nguyen et al. 2022, arXiv:2106.06639, Algorithm 1): w += lr / K sum_k s(age_k) (y_k - w_k).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Literal, NamedTuple

from atoll import server_opt as opt
from atoll import tree
from atoll.algorithms.fedavg import State, fedavg
from atoll.algorithms.fedprox import proximal
from atoll.errors import ConfigError
from atoll.policy import Staleness, constant, hinge, polynomial
from atoll.types import Aggregator, Algorithm, ClientId, Finished, Local, Reduced, Request, Tree, Update


class Mixed(NamedTuple):
    """sum_k a_k (y_k - w), and how many."""

    tree: Tree | None
    clients: int


def fedasync(
    local: Local[Any],
    alpha: float = 0.6,
    staleness: Literal["constant", "polynomial", "hinge"] = "polynomial",
    rho: float = 0.0,
) -> Algorithm[State]:
    """Mix each client's model into the global one as it lands; use with `policy.buffered(buffer=1)`.

    `alpha`: mixing weight of a fresh model. `staleness`: polynomial (1+s)^-0.5 or hinge (a=10, b=4) discount.
    `rho`: the paper's proximal term at the client. With a buffer of K, the mean of the K mixing steps is taken.
    The policy's own staleness factor does not apply: this algorithm discounts itself.

    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> sorted(fedasync(sgd(regression(linear(3, 1)))).local)
    ['train']
    """
    discounts = {"constant": constant, "polynomial": polynomial(0.5), "hinge": hinge(10, 4)}
    if not 0 < alpha <= 1 or staleness not in discounts:
        raise ConfigError(f"fedasync alpha = {alpha}, staleness = {staleness!r}: alpha in (0, 1], one of {', '.join(discounts)}")

    def trained(finished: Finished) -> tuple[Tree, Tree]:
        return tree.add(finished.context["start"], finished.delta), finished.memory

    def round(state: State, clients: Sequence[ClientId]) -> Generator[Request, Reduced, State]:
        w = state.params
        mix = mixing(w, alpha, discounts[staleness])
        reduced = yield Request("train", clients, lambda _: w, mix, like=w, discount=False)
        return State(tree.add(w, reduced.tree), ())

    fold = proximal(local, rho, "fedasync", trained, True)
    return Algorithm(lambda w: State(tree.pack(w), ()), round, lambda s: s.params, {"train": fold})


def mixing(w: Tree, alpha: float, discount: Staleness) -> Aggregator[Mixed]:
    """mean_k alpha s(age_k) (y_k - w): added to w, one update of it is FedAsync's mix."""

    def add(acc: Mixed, update: Update) -> Mixed:
        factor = alpha * discount(update.age)
        step = tree.map(lambda w, y: factor * (y.to(w.dtype) - w), w, update.tree)  # y may come in a narrower type
        return merge(acc, Mixed(step, 1))

    def merge(a: Mixed, b: Mixed) -> Mixed:
        if a.tree is None or b.tree is None:
            return Mixed(a.tree or b.tree, a.clients + b.clients)
        return Mixed(tree.axpy_(a.tree, b.tree), a.clients + b.clients)

    return Aggregator(
        lambda: Mixed(None, 0), add, merge, lambda acc: tree.scale(acc.tree or {}, 1.0 / max(acc.clients, 1)), only_sum=False
    )


def fedbuff(local: Local[Any], lr: float = 1.0) -> Algorithm[State]:
    """FedAvg with uniform weights, for `policy.buffered`, whose staleness factor discounts each update.

    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> sorted(fedbuff(sgd(regression(linear(3, 1)))).local)
    ['train']
    """
    return fedavg(local, opt.sgd(lr), weights="uniform")
