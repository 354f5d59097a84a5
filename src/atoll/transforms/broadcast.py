"""The way down compressed too: clients that hold an earlier version of the model are sent the steps that they lack.

The server keeps what every client can reconstruct, `public`, and the last encoded steps that led to it; each request adds one
step towards the model. A client counts as holding the version that it was sent with an assignment once its update to that
assignment was heard, for then, and only then, its memory is committed. So each client is sent the steps since the version that
it holds where they are there and together smaller than the model, else the model. With everybody in every round that is EF21-P
(Gruntkowska, Tyurin and Richtarik 2022, arXiv:2209.15218, equation 5); the versions are for those who miss rounds.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch

from atoll import rng, tree
from atoll.errors import ConfigError
from atoll.transforms import differences
from atoll.transforms.compose import broadcast_clash
from atoll.transforms.differences import MARK
from atoll.transforms.pipe import links_of
from atoll.types import Algorithm, Assignment, ClientId, Local, Reduced, Request, Seen, Transform, Tree, Update

PATIENCE = 2  # assignments in a row that stay unheard; then a client is sent the model itself, lest it has lost its memory


class Known(NamedTuple):
    """What the server knows of a client's memory; versions are counted from 1."""

    held: int = 0  # the version in its memory, 0: none
    sent: int = 0  # the version it was sent last and has not been heard of since, 0: none
    unheard: int = 0  # assignments in a row before that one which stayed unheard


class Broadcasting(NamedTuple):
    """The wrapped algorithm's state, and what clients can reconstruct."""

    inner: Any
    public: Tree  # the tensors that are sent in steps, as a client that holds `version` has them
    version: int
    steps: tuple[Tree, ...]  # encoded, the last leads to `version`; together smaller than the model
    known: Mapping[ClientId, tuple[int, int, int]]  # by client, a `Known`


def with_broadcast(inner: Algorithm[Any], codec: Transform[Any], work: str = "train", seed: int = 0) -> Algorithm[Broadcasting]:
    """The algorithm, with what it sends to clients for `work` encoded by `codec`. Attach it after `pipe`.

    Clients train from what they reconstruct; a lossy codec's error is in the next step. Each keeps one model in its memory,
    the server one model and at most another of steps. A tree that differs by client is sent as it is.

    Raises:
        ConfigError: the algorithm does no such work, or the codec needs more than one update to decode.

    >>> from atoll.algorithms.fedavg import fedavg
    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> from atoll.transforms.clip import clip
    >>> with_broadcast(fedavg(sgd(regression(linear(3, 1)))), clip(1.0))
    Traceback (most recent call last):
    atoll.errors.ConfigError: broadcast: 'clip' is no codec of a model, as it bounds a norm; use one such as int8 or xor
    """
    if work not in inner.local:
        raise ConfigError(f"broadcast: the algorithm has no work {work!r}; it has {', '.join(sorted(inner.local))}")
    if inner.local[work].payload == "scalars":
        raise ConfigError("broadcast: the algorithm sends its clients a few scalars, which nothing makes smaller; leave it out")
    for clash in filter(None, map(broadcast_clash, links_of([codec]))):
        raise ConfigError(f"broadcast: {clash}")

    def round(state: Broadcasting, clients: Sequence[ClientId]) -> Generator[Request, Reduced, Broadcasting]:
        flow, known = inner.round(state.inner, clients), {client: Known(*each) for client, each in state.known.items()}
        try:
            request = next(flow)
            while True:
                if request.work != work:
                    request = flow.send((yield request))
                    continue
                model = _shared(request)
                state = _advanced(state, codec, model, seed) if model else state
                reduced = yield _sending(request, state, model, known)
                for client in reduced.clients:
                    each = known.get(client, Known())
                    known[client] = Known(each.sent or each.held)
                request = flow.send(reduced)
        except StopIteration as done:
            return state._replace(inner=done.value, known={client: (*each,) for client, each in known.items()})

    locals_ = {**inner.local, work: _worn(inner.local[work], codec)}
    return Algorithm(lambda w: Broadcasting(inner.init(w), {}, 0, (), {}), round, lambda s: inner.params(s.inner), locals_)


def _shared(request: Request) -> Tree:
    """The tree that the first two candidates have in common; {} where nothing is to be encoded, and all are sent their own."""
    trees = [request.tree_for(client) for client in islice(request.clients, 2)]
    return trees[0] if trees and _same(trees[0], trees[-1]) and differences.coded(trees[0]) else {}


def _same(a: Tree, b: Tree) -> bool:
    return a is b or (a.keys() == b.keys() and all(x is b[name] for name, x in a.items()))


def _advanced(state: Broadcasting, codec: Transform[Any], model: Tree, seed: int) -> Broadcasting:
    """One version more: a step towards the model, or the model itself where it is the first or of other shapes."""
    new, old, version = differences.coded(model), state.public, state.version + 1
    if _form(new) != _form(old):
        return state._replace(public=tree.map(torch.clone, new), version=version, steps=())
    sent, public = differences.step(codec, new, old, rng.seed(seed, "broadcast", version))
    steps, left = list[Tree](), tree.size_bytes(public)
    for each in reversed((*state.steps, sent)):
        left -= tree.size_bytes(each)
        if left <= 0:
            break
        steps.insert(0, each)
    return state._replace(public=public, version=version, steps=tuple(steps))


def _form(values: Tree) -> list[tuple[str, torch.dtype, torch.Size]]:
    return [(name, x.dtype, x.shape) for name, x in values.items()]


def _sending(request: Request, state: Broadcasting, model: Tree, known: dict[ClientId, Known]) -> Request:
    """The request with each client's message in place of its tree; `known` learns what is sent."""
    tree_for, version = request.tree_for, state.version
    messages, given, personal = dict[int, Tree](), dict[ClientId, Tree](), dict[ClientId, Tree]()

    def message(held: int) -> Tree:
        lacking = version - held if held else 0
        lacking = lacking if lacking <= len(state.steps) else 0
        if lacking not in messages:  # one object for all who lack the same, so that it is written once
            steps = state.steps[len(state.steps) - lacking :]
            messages[lacking] = (
                differences.step_message(model, steps, state.public, version)
                if steps
                else differences.whole_message(model, state.public, version)
            )
        return messages[lacking]

    def sent_to(client: ClientId) -> Tree:
        if client in given:  # asked again: nothing is counted twice
            return given[client]
        own, last = tree_for(client), known.get(client, Known())
        if not _same(own, model):
            known[client], personal[client] = last._replace(sent=0), own
            given[client] = own
            return own
        unheard = last.unheard + 1 if last.sent else 0
        known[client] = Known(last.held, version, unheard)
        given[client] = message(last.held if unheard < PATIENCE else 0)
        return given[client]

    def plain_for(client: ClientId) -> Tree:
        return personal[client] if client in personal else model or tree_for(client)

    return request._replace(tree_for=sent_to, plain_for=plain_for, by_client=True)


def _worn(local: Local[Any], codec: Transform[Any]) -> Local[Any]:
    """The client's fold, from the model that it puts together; it remembers that model in a corner of its memory."""

    def init(assignment: Assignment, memory: Tree) -> Any:
        model, own = differences.received(codec, assignment.tree, tree.take(memory, MARK))
        plain = assignment._replace(tree=model)
        return local.init(plain, tree.drop(memory, MARK)), plain, own

    def step(carry: Any, batch: Any) -> Any:
        return local.step(carry[0], batch), carry[1], carry[2]

    def final(assignment: Assignment, carry: Any, seen: Seen) -> tuple[Update, Tree]:
        update, memory = local.final(carry[1], carry[0], seen)
        return update, {**memory, **tree.put(carry[2], MARK)}

    within = local.captured  # the codec works on the model, not on the steps
    captured = None if within is None else lambda carry: within(carry[0])
    return local._replace(init=init, step=step, final=final, captured=captured, descent=None)
