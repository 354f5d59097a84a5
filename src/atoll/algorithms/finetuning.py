"""Local fine-tuning after training: every client adapts the final model to its own data and keeps the result.

The plain baseline of personalisation (Cheng et al. 2021, arXiv:2108.07313): nothing is sent but metrics.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from atoll import tree
from atoll.aggregators.mean import mean
from atoll.algorithms.evaluation import Evaluated
from atoll.errors import ConfigError
from atoll.types import Algorithm, Assignment, ClientId, Local, Reduced, Request, Seen, Tree, Update

PERSONAL = "personal/"


def with_finetuning(
    inner: Algorithm[Any], local: Local[Any], evaluate: Local[Any], clients: Sequence[ClientId], after: int
) -> Algorithm[Evaluated]:
    """After round number `after`, `clients` judge the global model, train it on, and judge what they got.

    Metrics come out as events of "global" and "personal", a client each, on the same held-out examples; the
    personal model stays in the client's memory under "personal/".

    >>> from atoll.algorithms.fedavg import fedavg
    >>> from atoll.local.evaluate import evaluate
    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> task = regression(linear(3, 1))
    >>> alg = with_finetuning(fedavg(sgd(task)), sgd(task, lr=0.01), evaluate(task), ["a"], after=10)
    >>> sorted(alg.local)
    ['finetune', 'global', 'personal', 'train']
    """
    if not clients:
        raise ConfigError("fine-tuning is judged on each client's own test examples, and no client has any: split some off")

    def final(assignment: Assignment, carry: Any, seen: Seen) -> tuple[Update, Tree]:
        update, memory = local.final(assignment, carry, seen)
        own = tree.put(tree.add(assignment.tree, update.tree), PERSONAL)
        return update._replace(tree={}), {**memory, **own}

    def personal(assignment: Assignment, memory: Tree) -> Any:
        return evaluate.init(assignment._replace(tree=tree.take(memory, PERSONAL)), memory)

    def round(state: Evaluated, cohort: Sequence[ClientId]) -> Generator[Request, Reduced, Evaluated]:
        trained = yield from inner.round(state.inner, cohort)
        if state.round + 1 == after:
            params = inner.params(trained)
            for work in ("global", "finetune", "personal"):
                yield Request(work, clients, lambda _: params, mean(), fresh=True, cohort=len(clients), like={})
        return Evaluated(trained, state.round + 1)

    locals_ = {
        **inner.local,
        "global": evaluate,
        "finetune": local._replace(final=final, descent=None),
        "personal": evaluate._replace(init=personal),
    }
    return Algorithm(lambda w: Evaluated(inner.init(w), 0), round, lambda s: inner.params(s.inner), locals_)
