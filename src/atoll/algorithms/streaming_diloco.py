"""Streaming DiLoCo (Douillard et al. 2025, arXiv:2501.18512, Algorithm 2): a fragment of the model is synchronised at a time.

In round r of H / P inner steps fragment p = r mod P has its turn; P rounds synchronise the whole model once:
client  D_k = y_k,p - w_p at its end, y_k its own model, which stays with it;  `overlap` steps into the next round
        y_k,p = alpha y_k,p + (1 - alpha) w_p
server  m_p = mu m_p + mean(-D_k);  w_p -= lr (mean(-D_k) + mu m_p)
Only fragments cross the network. A client that did not answer in the last round is sent the whole model again.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atoll import server_opt as opt
from atoll import tree
from atoll.aggregators.mean import mean
from atoll.algorithms.diloco import goes_on
from atoll.algorithms.fragments import fragments as cut
from atoll.algorithms.fragments import part
from atoll.errors import ConfigError
from atoll.local.corrections import correct
from atoll.types import Algorithm, Assignment, Batch, Captured, ClientId, Finished, Local, Reduced, Request, Tree

TRAFFIC = {"train": {"over": "fragments"}}  # of the model, each way
_OWN, _BASE = "streaming/own/", "streaming/base/"


class State(NamedTuple):
    """The global model, each fragment as of its last turn; the outer momentum; what clients know."""

    params: Tree
    momentum: Tree
    turn: int
    heard: tuple[ClientId, ...]  # in the last round: they have all but the fragment that had its turn in it


class Overlapped(NamedTuple):
    """A client's descent, and the fragment that it will mix in."""

    inner: Any
    steps: Tensor  # 0-d, so far
    own: list[Tensor]  # the fragment's parameters
    sent: list[Tensor]


def streaming_diloco(
    local: Local[Any],
    fragments: int = 4,
    outer_lr: float = 0.7,
    momentum: float = 0.9,
    alpha: float = 0.5,
    overlap: int = 1,
) -> Algorithm[State]:
    """DiLoCo with 1/`fragments` of the model on the network at a time, mixed into what clients have learnt meanwhile.

    `local`: `adamw(task, steps=H / fragments, keep=True)`. `alpha`: how much of its own fragment a client keeps; 0: it
    takes the server's. `overlap`: so many inner steps after its round the server's fragment is mixed in, as if it had
    been on its way for that long; the driver itself sends and computes in turn. 4-bit outer gradients: attach `int4`.

    Raises:
        ConfigError: the local work begins anew in each round, or a value is out of its range.

    >>> from atoll.local.adamw import adamw
    >>> from atoll.models.mlp import mlp
    >>> from atoll.tasks.classification import classification
    >>> task = classification(mlp(4, [8], 3))
    >>> sorted(streaming_diloco(adamw(task, steps=5, keep=True), fragments=2).local)
    ['train']
    """
    steps = goes_on(local, "streaming_diloco").batching.steps
    if not 0 <= alpha < 1:
        raise ConfigError(f"streaming_diloco alpha = {alpha}: must be in [0, 1); at 1 nobody would hear of the others")
    if overlap < 0 or (steps is not None and overlap >= steps):
        raise ConfigError(f"streaming_diloco overlap = {overlap}: must be 0 or more steps, and fewer than the {steps} of a round")
    step_by = opt.past(opt.momentum(outer_lr, momentum, nesterov=True), local.averaged)

    def begun(assignment: Assignment, memory: Tree) -> tuple[Tree, Tree]:
        """What the client starts from, and the global model as far as it knows."""
        sent = tree.take(assignment.tree, "w/")
        if bool(assignment.tree["whole"]):
            return sent, sent
        own, mix = tree.take(memory, _OWN), (0.0 if overlap else 1.0 - alpha)
        mixed = {name: own[name] + mix * (x - own[name]) for name, x in sent.items()} if mix else {}
        return {**own, **mixed}, {**tree.take(memory, _BASE), **sent}

    def start(assignment: Assignment, memory: Tree) -> tuple[Tree, dict[str, Tree]]:
        return begun(assignment, memory)[0], {}

    def final(finished: Finished) -> tuple[Tree, Tree]:
        first, base = begun(finished.assignment, finished.memory)
        own = tree.add(first, finished.delta)
        names = cut(own, fragments)[int(finished.assignment.tree["fragment"])]
        payload = tree.pack({name: own[name] - base[name] for name in names})
        return payload, {**finished.memory, **tree.put(own, _OWN), **tree.put(base, _BASE)}

    def init(w: Tree) -> State:
        cut(w, fragments)  # says whether so many can be told apart
        return State(tree.pack(w), step_by.init(tree.pack(w)), 0, ())

    def round(state: State, clients: Sequence[ClientId]) -> Generator[Request, Reduced, State]:
        parts, w, heard = cut(state.params, fragments), state.params, frozenset(state.heard)
        names, fragment = parts[state.turn % fragments], torch.tensor(state.turn % fragments)
        last = part(w, parts[(state.turn - 1) % fragments])
        update = {"fragment": fragment, "whole": torch.tensor(False), **tree.put(last, "w/")}
        whole = {"fragment": fragment, "whole": torch.tensor(True), **tree.put(w, "w/")}
        like = part(w, names)
        tree_for = lambda c: update if c in heard else whole  # noqa: E731
        reduced = yield Request("train", clients, tree_for, mean("uniform"), True, like=like, by_client=True)
        step, after = step_by.update(reduced.tree, part(state.momentum, names))
        params = {**w, **tree.add(like, {name: step[name] for name in names})}
        return State(params, {**state.momentum, **after}, state.turn + 1, tuple(reduced.clients))

    fold = _overlapped(correct(local, "streaming_diloco", start, final=final), alpha, overlap)
    return Algorithm(init, round, lambda state: state.params, {"train": fold})


def _overlapped(fold: Local[Any], alpha: float, overlap: int) -> Local[Any]:
    """The descent with the fragment received mixed in after `overlap` steps; none of its Python depends on the step."""
    if not overlap:
        return fold

    def init(assignment: Assignment, memory: Tree) -> Overlapped:
        inner = fold.init(assignment, memory)
        sent = {} if bool(assignment.tree["whole"]) else tree.take(assignment.tree, "w/")
        known = {**inner.params, **inner.buffers}
        # Copies: what a step reads has memory of its own, so that engines may stack it.
        return Overlapped(inner, torch.zeros(()), [known[name] for name in sent], [x.clone() for x in sent.values()])

    def step(carry: Overlapped, batch: Batch) -> Overlapped:
        inner = fold.step(carry.inner, batch)
        with torch.no_grad():
            carry.steps.add_(1)
            if carry.own:
                apart = torch._foreach_sub(carry.sent, carry.own)
                torch._foreach_mul_(apart, (1.0 - alpha) * (carry.steps == overlap))
                torch._foreach_add_(carry.own, apart)
        return carry._replace(inner=inner)

    def captured(carry: Overlapped) -> Captured:
        assert fold.captured is not None
        tensors, constants = fold.captured(carry.inner)
        return Captured([*tensors, carry.steps, *carry.sent], constants)

    return fold._replace(
        init=init,
        step=step,
        final=lambda assignment, carry, seen: fold.final(assignment, carry.inner, seen),
        captured=captured if fold.captured else None,
    )
