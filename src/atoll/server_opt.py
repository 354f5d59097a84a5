"""Server optimisers on the pseudo-gradient D = mean(y_k - w) (Reddi et al. 2021, arXiv:2003.00295).

Each maps (D, state) to (the step to add to w, state).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from atoll import tree
from atoll.errors import ConfigError
from atoll.types import Tree


class ServerOpt(NamedTuple):
    """A server optimiser: both functions are pure."""

    init: Callable[[Tree], Any]
    update: Callable[[Tree, Any], tuple[Tree, Any]]


class Moments(NamedTuple):
    """First and second moment of the pseudo-gradient."""

    m: Tree
    v: Tree


def past(opt: ServerOpt, averaged: frozenset[str]) -> ServerOpt:
    """The optimiser for all but the names in `averaged`, whose mean difference is the step: momentum would make a
    running variance negative."""
    if not averaged:
        return opt

    def trained(a: Tree) -> Tree:
        return {name: x for name, x in a.items() if name not in averaged}

    def update(d: Tree, state: Any) -> tuple[Tree, Any]:
        step, state = opt.update(trained(d), state)
        return {**step, **{name: x for name, x in d.items() if name in averaged}}, state

    return ServerOpt(lambda w: opt.init(trained(w)), update)


def sgd(lr: float = 1.0) -> ServerOpt:
    """w += lr D; lr 1 is FedAvg.

    >>> step, _ = sgd(0.5).update({"w": torch.tensor([2.0])}, ())
    >>> step["w"].tolist()
    [1.0]
    """
    _positive("sgd", lr=lr)
    return ServerOpt(lambda w: (), lambda d, s: (d if lr == 1.0 else tree.scale(d, lr), s))


def momentum(lr: float = 1.0, beta: float = 0.9, nesterov: bool = False) -> ServerOpt:
    """v = beta v + D; w += lr v, or with Nesterov w += lr (D + beta v) (FedAvgM, arXiv:1909.06335).

    >>> opt = momentum(1.0, beta=0.5)
    >>> step, v = opt.update({"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])})
    >>> step["w"].tolist()
    [2.0]
    """
    _positive("momentum", lr=lr)
    _below_one("momentum", beta=beta)

    def update(d: Tree, v: Tree) -> tuple[Tree, Tree]:
        v = tree.map(lambda v, d: beta * v + d, v, d)
        step = tree.map(lambda v, d: lr * (d + beta * v), v, d) if nesterov else tree.scale(v, lr)
        return step, v

    return ServerOpt(_zeros, update)


def adam(lr: float = 0.01, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3) -> ServerOpt:
    """FedAdam: m = b1 m + (1 - b1) D; v = b2 v + (1 - b2) D^2; w += lr m / (sqrt v + tau).

    arXiv:2003.00295, Algorithm 2: v starts at tau^2 and there is no bias correction.

    >>> opt = adam(lr=1.0, b1=0.0, b2=0.0, tau=1.0)
    >>> opt.update({"w": torch.tensor([3.0])}, opt.init({"w": torch.zeros(1)}))[0]["w"].tolist()
    [0.75]
    """
    _below_one("adam", b1=b1, b2=b2)
    return _adaptive("adam", lr, b1, tau, lambda v, d2: b2 * v + (1 - b2) * d2)


def yogi(lr: float = 0.01, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3) -> ServerOpt:
    """FedYogi: as adam, but v -= (1 - b2) D^2 sign(v - D^2) (arXiv:2003.00295, Algorithm 2).

    >>> yogi(lr=0.1).init({"w": torch.zeros(1)}).v["w"].item() > 0
    True
    """
    _below_one("yogi", b1=b1, b2=b2)
    return _adaptive("yogi", lr, b1, tau, lambda v, d2: v - (1 - b2) * d2 * torch.sign(v - d2))


def adagrad(lr: float = 0.01, b1: float = 0.0, tau: float = 1e-3) -> ServerOpt:
    """FedAdagrad: v += D^2 (arXiv:2003.00295, Algorithm 2; b1 = 0 there).

    >>> opt = adagrad(lr=1.0, tau=1.0)
    >>> round(opt.update({"w": torch.tensor([1.0])}, opt.init({"w": torch.zeros(1)}))[0]["w"].item(), 4)
    0.4142
    """
    _below_one("adagrad", b1=b1)
    return _adaptive("adagrad", lr, b1, tau, lambda v, d2: v + d2)


def _adaptive(name: str, lr: float, b1: float, tau: float, second: Callable[..., torch.Tensor]) -> ServerOpt:
    _positive(name, lr=lr, tau=tau)

    def init(w: Tree) -> Moments:
        return Moments(_zeros(w), tree.map(lambda x: torch.full_like(x, tau**2), _zeros(w)))

    def update(d: Tree, state: Moments) -> tuple[Tree, Moments]:
        m = tree.map(lambda m, d: b1 * m + (1 - b1) * d, state.m, d)
        v = tree.map(lambda v, d: second(v, d.square()), state.v, d)
        return tree.map(lambda m, v: lr * m / (v.sqrt() + tau), m, v), Moments(m, v)

    return ServerOpt(init, update)


def _zeros(w: Tree) -> Tree:
    """Zeros to accumulate in: the pseudo-gradient arrives in float32 or wider."""
    return tree.map(lambda x: torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)), w)


def _positive(name: str, **values: float) -> None:
    for key, value in values.items():
        if not value > 0:
            raise ConfigError(f"server optimiser {name}: {key} = {value} must be above 0")


def _below_one(name: str, **values: float) -> None:
    for key, value in values.items():
        if not 0 <= value < 1:
            raise ConfigError(f"server optimiser {name}: {key} = {value} must be in [0, 1)")
