"""Attach transforms to an algorithm: encode at the client, decode and finish at the server."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from atoll import tree
from atoll.errors import ConfigError
from atoll.types import Aggregator, Algorithm, Assignment, ClientId, Local, Reduced, Request, Seen, Transform, Tree, Update

S = TypeVar("S")
G = TypeVar("G")


def pipe(inner: Algorithm[Any], *links: Transform[Any], work: str = "train") -> Algorithm[Any]:
    """`pipe(fedavg(...), clip(1.0), cast("bf16"))` clips, then casts: the last link is nearest the network.

    Raises ConfigError when a transform is attached twice, when the algorithm does no such work, or when a link that
    bounds the norm comes after one that changes the representation.

    >>> from atoll.algorithms.fedavg import fedavg
    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> from atoll.transforms.clip import clip
    >>> pipe(fedavg(sgd(regression(linear(3, 1)))), clip(1.0), clip(2.0))
    Traceback (most recent call last):
    atoll.errors.ConfigError: pipe: 'clip' is attached twice; keep one
    """
    names = [link.name for link in links]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"pipe: {sorted(doubled)[0]!r} is attached twice; keep one")
    if work not in inner.local:
        raise ConfigError(f"pipe: the algorithm has no work {work!r} to attach to; it has {', '.join(sorted(inner.local))}")
    for link in links:
        if link.properties.bounds_norm and inner.local[work].payload != "update":
            raise ConfigError(
                f"pipe: {link.name!r} bounds the norm of an update, but this algorithm's clients send more than an update; "
                f"leave it out, or use an algorithm such as fedavg or fedprox"
            )
    for before, after in pairwise(links):
        if after.properties.bounds_norm and not before.properties.bounds_norm:
            raise ConfigError(
                f"pipe: {after.name!r} bounds the norm of what {before.name!r} has encoded; put {after.name!r} first"
            )
    algorithm = inner
    for link in links:
        algorithm = _attach(algorithm, link, work)
    return algorithm


def _attach(inner: Algorithm[S], link: Transform[G], work: str) -> Algorithm[tuple[S, G]]:
    mark = f"~{link.name}/"

    def round(state: tuple[S, G], clients: Sequence[ClientId]) -> Generator[Request, Reduced, tuple[S, G]]:
        flow, own = inner.round(state[0], clients), state[1]
        try:
            request = next(flow)
            while True:
                if request.work != work:
                    request = flow.send((yield request))
                    continue
                reduced = yield _asked(request, link, tree.put(link.broadcast(own), mark))
                finished, own = link.finish(own, reduced)
                request = flow.send(reduced._replace(tree=finished))
        except StopIteration as done:
            return done.value, own

    locals_ = {**inner.local, work: _worn(inner.local[work], link, mark)}
    return Algorithm(lambda w: (inner.init(w), link.init(w)), round, lambda s: inner.params(s[0]), locals_)


def _asked(request: Request, link: Transform[Any], extra: Tree) -> Request:
    """The request as the network sees it: the link's broadcast beside the model, its decode before the fold."""
    tree_for, reduce, decode = request.tree_for, request.reduce, link.decode
    if decode is not None:
        undo, into = decode, reduce
        reduce = Aggregator(into.init, lambda a, u: into.add(a, undo(u)), into.merge, into.finish, only_sum=False)
    like = request.like if decode is None else None  # an encoded update has names and shapes of its own
    return request._replace(tree_for=(lambda c: {**tree_for(c), **extra}) if extra else tree_for, reduce=reduce, like=like)


def _worn(local: Local[Any], link: Transform[Any], mark: str) -> Local[Any]:
    """The client's fold with the link's encode after it; each link has its own corner of the client's memory."""

    def bare(assignment: Assignment) -> Assignment:
        return assignment._replace(tree=tree.drop(assignment.tree, mark))

    def init(assignment: Assignment, memory: Tree) -> Any:
        return local.init(bare(assignment), tree.drop(memory, mark)), tree.take(memory, mark)

    def step(carry: Any, batch: Any) -> Any:
        return local.step(carry[0], batch), carry[1]

    def final(assignment: Assignment, carry: Any, seen: Seen) -> tuple[Update, Tree]:
        update, memory = local.final(bare(assignment), carry[0], seen)
        update, own = link.encode(assignment, tree.take(assignment.tree, mark), carry[1], update)
        return update, {**memory, **tree.put(own, mark)}

    within = local.captured  # transforms work on the update, not on the steps
    captured = None if within is None else lambda carry: within(carry[0])
    return Local(init, step, final, local.batching, payload="encoded", captured=captured, averaged=local.averaged)
