"""Laws of a client's fold: reproducible, leaves what it was sent alone, keeps others' memory, captured as a graph if asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree

from atoll import tree
from atoll.data.examples import batches
from atoll.round import work
from atoll.testing.store import same_bits
from atoll.types import Assignment, Batch, ClientId, Examples, Local, Tree, Update

STRANGE = "of another/own"  # memory that the fold knows nothing of


def check_local(
    local: Local[Any],
    examples: Examples,
    start: Tree,
    memory: Tree | None = None,
    captures: bool = False,
    tolerance: float = 1e-6,
) -> None:
    """Raise AssertionError where a law does not hold.

    `start`: the tree that the algorithm sends. `memory`: what the client remembers of this fold, if it needs any.
    `captures`: the step can be captured as a graph, so that engines may trace it; the graph's result differs from
    the eager one by `tolerance` at most.

    >>> from atoll.data.examples import Tensors
    >>> from atoll.local.binding import binding
    >>> from atoll.local.sgd import sgd
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> task, four = regression(linear(2, 1)), Tensors({"x": torch.ones(4, 2), "y": torch.ones(4)})
    >>> check_local(sgd(task, batch_size=2), four, binding(task.module).state(), captures=True)
    """
    start = {name: x.detach().clone() for name, x in start.items()}
    known = {**(memory or {}), STRANGE: torch.tensor([7.0])}
    for sent in (start, tree.pack(start)):
        first, remembered = _worked(local, examples, sent, known)
        assert same_bits({**sent}, start), "the fold wrote to the tree it was sent"
        assert torch.equal(known[STRANGE], torch.tensor([7.0])), "the fold wrote to the client's memory"
        torch.rand(5)  # whatever else the process draws must not matter
        again, after = _worked(local, examples, sent, known)
        assert same_bits(dict(first.tree), dict(again.tree)), "the same assignment gives other bits"
        assert same_bits({**remembered}, {**after}), "the same assignment is remembered in other bits"
        assert STRANGE in remembered, "the fold forgets what others remember at this client: return its memory with yours"
        assert (first.round, first.client, first.work) == (2, "north", "train"), "the update lost its place"
        assert math.isfinite(first.weight), f"weight {first.weight}"
        assert first.weight > 0, f"weight {first.weight}"
        assert tree.finite(first.tree), "the update is not finite"
        assert all(isinstance(v, int | float) for v in first.metrics.values()), f"metrics are numbers, not {first.metrics}"
    if captures:
        _check_capture(local, examples, start, known, tolerance)


def _assignment(start: Tree) -> Assignment:
    return Assignment(2, ClientId("north"), "train", start, 11)


def _worked(local: Local[Any], examples: Examples, start: Tree, memory: Tree) -> tuple[Update, Tree]:
    answer, after = work(_assignment(start), local, examples, memory)
    assert isinstance(answer, Update), f"the fold failed: {answer}"
    copied = answer._replace(tree={name: x.detach().clone() for name, x in answer.tree.items()})
    return copied, {name: x.detach().clone() for name, x in after.items()}


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of a carry, in a fixed order.

    >>> [float(x) for x in tensors_of({"b": torch.tensor(1.0), "a": (torch.tensor(2.0), "text")})]
    [1.0, 2.0]
    """
    return [x for x in _pytree.tree_leaves(value) if isinstance(x, Tensor)]


def capture(local: Local[Any], carry: Any, batch: Batch) -> tuple[GraphModule, Callable[[Any, Batch], list[Tensor]]]:
    """The step as a graph over the tensors of (carry, batch), and how to take those out of another carry and batch.

    The graph gives the tensors of the carry after the step.
    """
    leaves, shape = _pytree.tree_flatten((carry, dict(batch)))
    which = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]

    def step(*given: Tensor) -> list[Tensor]:
        filled = list(leaves)
        for i, x in zip(which, given, strict=True):
            filled[i] = x.requires_grad_() if leaves[i].requires_grad else x
        before, read = _pytree.tree_unflatten(filled, shape)
        return [x.detach() for x in tensors_of(local.step(before, read))]

    def inputs(carry: Any, batch: Batch) -> list[Tensor]:
        return [x.detach().clone() for x in tensors_of((carry, dict(batch)))]

    return make_fx(step)(*inputs(carry, batch)), inputs


def _check_capture(local: Local[Any], examples: Examples, start: Tree, memory: Tree, tolerance: float) -> None:
    read: Sequence[Batch] = list(batches(examples, local.batching, 11))[:3]
    same_size = [b for b in read if len(next(iter(b.values()))) == len(next(iter(read[0].values())))]
    graph, inputs = capture(local, local.init(_assignment(start), memory), same_size[0])
    eager, held = local.init(_assignment(start), memory), local.init(_assignment(start), memory)
    now = inputs(held, same_size[0])
    size = len(now) - len(same_size[0])
    for batch in same_size:
        now[size:] = [x.clone() for x in tensors_of(dict(batch))]
        now[:size] = graph(*now)
        eager = local.step(eager, batch)
        for got, want in zip(now[:size], tensors_of(eager), strict=True):
            torch.testing.assert_close(got, want.detach(), rtol=tolerance, atol=tolerance)
