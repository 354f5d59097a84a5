"""Attach transforms to an algorithm: encode at the client, decode and finish at the server."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any, TypeVar

from atoll import tree
from atoll.errors import ConfigError
from atoll.transforms.compose import Link, clashes
from atoll.types import Algorithm, Assignment, ClientId, Local, Reduced, Request, Seen, Transform, Tree, Update

S = TypeVar("S")
G = TypeVar("G")


def pipe(inner: Algorithm[Any], *links: Transform[Any], work: str = "train") -> Algorithm[Any]:
    """`pipe(fedavg(...), clip(1.0), cast("bf16"))` clips, then casts: the last link is nearest the network.

    Raises ConfigError when the algorithm does no such work, or when links do not go together: see `transforms.compose`.

    >>> from atoll.algorithms.fedavg import fedavg
    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> from atoll.transforms.clip import clip
    >>> pipe(fedavg(sgd(regression(linear(3, 1)))), clip(1.0), clip(2.0))
    Traceback (most recent call last):
    atoll.errors.ConfigError: pipe: 'clip' is attached twice; keep one
    """
    if work not in inner.local:
        raise ConfigError(f"pipe: the algorithm has no work {work!r} to attach to; it has {', '.join(sorted(inner.local))}")
    for clash in clashes(links_of(links), payload=inner.local[work].payload):
        raise ConfigError(f"pipe: {clash.text}")
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
                reduced = yield asked(request, link, tree.put(link.broadcast(own), mark))
                finished, own = link.finish(own, reduced)
                request = flow.send(reduced._replace(tree=finished))
        except StopIteration as done:
            return done.value, own

    locals_ = {**inner.local, work: _worn(inner.local[work], link, mark)}
    return Algorithm(lambda w: (inner.init(w), link.init(w)), round, lambda s: inner.params(s[0]), locals_)


def described(link: Transform[Any]) -> Link:
    """A transform as the rules of composition see it."""
    return Link(link.name, frozenset(name for name, has in link.properties._asdict().items() if has))


def links_of(transforms: Iterable[Transform[Any]]) -> list[Link]:
    """Transforms as the rules see them: one that is made of others before those, or those alone where it only chains them."""
    found: list[Link] = []
    for each in transforms:
        inside = links_of(each.links)
        if not inside or (each.properties.feedback and each.properties.memory):
            theirs = frozenset[str]().union(*(link.properties for link in inside))
            found.append(described(each)._replace(properties=described(each).properties - theirs))
        found += inside
    return found


def asked(request: Request, link: Transform[Any], extra: Tree) -> Request:
    """The request as the network sees it: the link's broadcast beside the model, its decode before the one inside it.

    What is undone of the sum, by parameters that all clients share, can't be summed with what others had: late, it is dropped.
    """
    tree_for, like, within, undo = request.tree_for, request.like, request.decode, link.decode
    decode = within
    if undo is not None:
        decode = (lambda u: within(undo(u, like))) if within else (lambda u: undo(u, like))
    form = link.form(like) if link.form is not None and like is not None else like
    fresh = request.fresh or (link.form is not None and link.properties.shared)
    plain = request.like if request.plain is None else request.plain
    given = (lambda c: {**tree_for(c), **extra}) if extra else tree_for
    return request._replace(tree_for=given, like=form, decode=decode, plain=plain, fresh=fresh)


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
