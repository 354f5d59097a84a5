"""Clients that are regions: what an algorithm asks of them, and what their answers count for.

A region's answer is the mean of its clients' x_k with the sum of their weights, so that the mean of what a server hears is
the mean over all clients:  sum_r W_r (sum_{k in r} w_k x_k / W_r) / sum_r W_r,  W_r = sum_{k in r} w_k.  `deploy.regions.relay`
makes such answers. Whether w_k is a client's examples or 1 is the algorithm's to say, and is told with what is sent.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch

from atoll.errors import ConfigError, TreeError
from atoll.types import Algorithm, ClientId, Reduced, Request, Tree, Update

MARK = "~region/"
UNIFORM = "uniform"
CLIENTS = "clients"  # the metric that says how many clients are behind a region's answer


def with_regions(inner: Algorithm[Any], regions: Mapping[ClientId, int]) -> Algorithm[Any]:
    """The algorithm, where each client of `regions` stands for so many, of which as many as there are may answer.

    Attach it last. A mean over regions is that over their clients, up to rounding; what is no mean is refused when the
    federation begins.

    Raises:
        ConfigError: the algorithm's clients send what it has encoded itself; from `init` also where it asks each client for
            something else, or makes something other than a mean of the answers.

    >>> from atoll.algorithms.fedavg import fedavg
    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> task = regression(linear(1, 1))
    >>> algorithm = with_regions(fedavg(sgd(task)), {"north": 3})
    >>> state = algorithm.init(dict(task.module.named_parameters()))
    >>> request = next(algorithm.round(state, ["north", "a"]))
    >>> [sorted(request.tree_for(client)) for client in ("north", "a")]
    [['bias', 'weight', '~region/uniform'], ['bias', 'weight']]
    """

    def init(w: Tree) -> Any:
        state = inner.init(w)
        flow = inner.round(state, sorted(regions))
        refuse(next(flow))
        flow.close()
        return state

    def round(state: Any, clients: Sequence[ClientId]) -> Generator[Request, Reduced, Any]:
        flow = inner.round(state, clients)
        try:
            request = next(flow)
            while True:
                request = flow.send((yield _asked(request, regions)))
        except StopIteration as done:
            return done.value

    return inner._replace(init=init, round=round)


def refuse(request: Request) -> None:
    """Raise ConfigError for a request that nobody can answer for several clients."""
    if request.by_client:
        raise ConfigError(
            f"regions: what is sent for {request.work!r} depends on the client, and a region's clients would all be sent the "
            f"same; use an algorithm such as fedavg or scaffold, and no [broadcast]"
        )
    if request.reduce.weights is None or not request.reduce.only_sum:
        raise ConfigError(
            f"regions: the answers to {request.work!r} are reduced to something other than their mean, and that of a region's "
            f"means is not that of its clients; use a mean, or let the clients of the region join the coordinator itself"
        )


def counted(update: Update, most: int) -> Update:
    """A region's answer with the number of clients that it says; TreeError where that is not from 1 to `most`."""
    told = update.metrics.get(CLIENTS, 0.0)
    if not (1 <= told <= most and told == int(told)):
        raise TreeError(f"the region {update.client!r} has {most} clients, and its answer says that it is the mean of {told:g}")
    metrics = {name: value for name, value in update.metrics.items() if name != CLIENTS}
    return update._replace(clients=int(told), metrics=metrics)


def _asked(request: Request, regions: Mapping[ClientId, int]) -> Request:
    """The request as it goes to regions too."""
    refuse(request)
    tree_for, within = request.tree_for, request.decode
    mark = {MARK + UNIFORM: torch.tensor(request.reduce.weights == "uniform")}

    def given(client: ClientId) -> Tree:
        return {**tree_for(client), **mark} if client in regions else tree_for(client)

    def decode(update: Update) -> Update:
        plain = within(update) if within is not None else update
        return counted(plain, regions[update.client]) if update.client in regions else plain

    return request._replace(tree_for=given, decode=decode)
