"""q-FedAvg (Li et al. 2020, arXiv:1905.10497, Algorithm 2): fairness by giving clients with a high loss more weight.

Delta_k = F_k(w)^q L (w - y_k);   h_k = q F_k(w)^(q-1) |L (w - y_k)|^2 + L F_k(w)^q
w -= sum_k Delta_k / sum_k h_k;   L = 1 / lr
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import torch

from atoll import tree
from atoll.aggregators.mean import mean
from atoll.errors import ConfigError
from atoll.local.corrections import correct, descent_of
from atoll.local.evaluate import evaluate
from atoll.types import Algorithm, ClientId, Finished, Local, Reduced, Request, Task, Tree

TRAFFIC = {"measure": {"up": 0}, "train": {"up_values": 1}}  # the model, for a loss; then the model, for Delta_k and h_k
LOSS = "qfedavg/loss"


class State(NamedTuple):
    """The global model."""

    params: Tree


def qfedavg(local: Local[Any], task: Task, q: float = 1.0, batch_size: int = 256) -> Algorithm[State]:
    """Two requests a round: the cohort measures F_k(w) on its training data and remembers it, then trains.

    q = 0 is FedAvg with uniform weights; a larger q is fairer. L is 1 over the local learning rate.

    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> task = regression(linear(3, 1))
    >>> sorted(qfedavg(sgd(task), task, q=1).local)
    ['measure', 'train']
    """
    if q < 0:
        raise ConfigError(f"qfedavg q = {q}: must be 0 or more")
    smooth = 1.0 / descent_of(local, "qfedavg").lr

    def final(finished: Finished) -> tuple[Tree, Tree]:
        loss = max(float(finished.memory[LOSS]), 1e-10)  # as the authors' code: a loss of 0 would divide by 0
        trained = {name: x for name, x in finished.delta.items() if name not in local.averaged}
        squared = smooth**2 * tree.dot(trained, trained)
        h = q * loss ** (q - 1) * squared + smooth * loss**q
        kept = {name: x for name, x in finished.memory.items() if name != LOSS}
        return {**tree.put(tree.scale(finished.delta, loss**q * smooth), "d/"), "h": torch.tensor(h)}, kept

    def round(state: State, clients: Sequence[ClientId]) -> Generator[Request, Reduced, State]:
        measured = yield Request("measure", clients, lambda _: state.params, mean(), like={})
        cohort, like = measured.clients, {**tree.put(state.params, "d/"), "h": torch.zeros(())}
        reduced = yield Request("train", cohort, lambda _: state.params, mean("uniform"), True, len(cohort), like)
        return State(tree.add(state.params, tree.scale(tree.take(reduced.tree, "d/"), 1.0 / float(reduced.tree["h"]))))

    fold, measure = correct(local, "qfedavg", final=final, composite=True), evaluate(task, batch_size, "train", remember=LOSS)
    return Algorithm(lambda w: State(tree.pack(w)), round, lambda s: s.params, {"measure": measure, "train": fold})
