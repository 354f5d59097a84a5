"""What a job's algorithm declares that its clients send, found at the site from the federation that it has built itself.

The server's half of a round is gone through up to its first request for tensors, with the model as it stands at the beginning;
that says what an update of that work looks like before the job's codecs, and whether it has the form of what a client was sent.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from atoll.aggregators.mean import mean
from atoll.deploy.rules.permit import Declared, outline, received
from atoll.federation import Federation
from atoll.local.binding import binding
from atoll.transforms.pipe import asked
from atoll.types import Assignment, Reduced, Request, Transform, Tree, Update

ALWAYS = ("loss", "examples", "seconds", "steps")  # what a client's work is measured by, whatever it is


class Promise(NamedTuple):
    """What is declared of one kind of work."""

    work: str
    metrics: frozenset[str]
    like: Tree | None = None  # names, shapes and dtypes, on no device, as `decode` and the codecs give them; None: they vary
    decode: Callable[[Update], Update] | None = None  # the algorithm's own
    as_sent: bool = False  # `like` is what was sent
    names: Tree = MappingProxyType({})  # where they vary: what may come beside what was sent
    codecs: frozenset[str] | None = frozenset()  # and how it may be spelled; None: as any codec spells it
    links: Sequence[Transform[Any]] = ()  # the job's transforms of this work

    def of(self, assignment: Assignment) -> Declared:
        """What may answer this assignment."""
        like = received(assignment) if self.as_sent else self.like
        if like is None:
            names = {**self.names, **received(assignment)}
            return Declared(assignment.work, names=names, metrics=self.metrics, codecs=self.codecs)
        request = Request(self.work, (), lambda _: {}, mean(), like=like, decode=self.decode)
        for link in self.links:
            request = asked(request, link, {})
        return Declared(assignment.work, request.like, request.decode, metrics=self.metrics)


def promises(federation: Federation, rounds: int) -> Mapping[str, Promise]:
    """By kind of work, of all that the job asks of clients. Raises as `Federation.plain` does."""
    links = list(every(federation.transforms))
    metrics = frozenset([*ALWAYS, *federation.task.metrics, *(name for each in links for name in _told(each))])
    trained, state = federation.algorithm.local, binding(federation.task.module).state()
    varies = Promise("", metrics, names=outline(state), codecs=frozenset(each.name for each in links))
    found = {
        work: varies._replace(work=work) if work in trained else Promise(work, metrics, {})  # evaluation sends no tensor
        for work in federation.local(rounds)
    }
    found["train"] = found["train"]._replace(links=federation.transforms)
    for request in _requests(federation, state):
        before, like = found[request.work], outline(request.like or {})
        if trained[request.work].payload == "scalars":
            found[request.work] = before._replace(like=like, decode=request.decode)
        elif request.like is None or request.decode is not None:
            found[request.work] = before._replace(codecs=None)  # an encoding of its own, which may change from round to round
        elif not like or _same(like, state):
            found[request.work] = before._replace(like=like)
        elif federation.broadcast is None and _same(like, request.tree_for(request.clients[0])):
            found[request.work] = before._replace(as_sent=True)
        else:
            found[request.work] = before._replace(names={**before.names, **like})
    return found


def _requests(federation: Federation, state: Tree) -> Iterator[Request]:
    """What a first round asks, up to the first request whose answer would have to be made up."""
    clients = sorted(federation.data.clients)
    flow = federation.algorithm.round(federation.algorithm.init(state), clients)
    request = next(flow)
    yield request
    while request.like is not None and not request.like:
        measured = dict.fromkeys(ALWAYS, 1.0)
        request = flow.send(Reduced({}, clients, measured, [measured] * len(clients)))
        yield request


def every(links: Sequence[Transform[Any]]) -> Iterator[Transform[Any]]:
    """Transforms, and those that they are made of."""
    for each in links:
        yield each
        yield from every(each.links)


def _told(link: Transform[Any]) -> Sequence[str]:
    """The metrics that a transform adds, by its module's METRICS."""
    return getattr(sys.modules.get(link.encode.__module__), "METRICS", ())


def _same(one: Tree, other: Tree) -> bool:
    return {name: x.shape for name, x in one.items()} == {name: x.shape for name, x in other.items()}
