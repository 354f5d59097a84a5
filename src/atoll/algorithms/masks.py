"""Masks that a server issues: a pruned model on its way to a client and back.

Only kept entries cross the network, in their order, under the name of their tensor; where they belong is sent as a bitmap,
once, and remembered by the client. A client computes with the dense module, its pruned entries at exactly zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from atoll import tree
from atoll.errors import TreeError
from atoll.local.corrections import correct
from atoll.local.full_gradient import full_gradient
from atoll.transforms.compress import bits
from atoll.types import Assignment, Batch, Finished, Local, Seen, Task, Tree, Update

Axes = Mapping[str, int]  # the tensors that are pruned, and how many axes each has
BITS, SHAPES, SINCE, MOST = "mask/bits", "mask/shapes", "mask/since", "mask/most"


def prunable(task: Task) -> dict[str, int]:
    """The trained tensors of two axes and more: weights, not biases or norms."""
    return {name: p.dim() for name, p in task.module.named_parameters() if p.requires_grad and p.dim() > 1}


def largest(scores: Tree, count: Mapping[str, int]) -> dict[str, Tensor]:
    """Masks (bool) of so many entries of each tensor, those of the largest scores; of equal ones the first.

    >>> largest({"w": torch.tensor([[1.0, 3.0], [2.0, 0.5]])}, {"w": 2})["w"].tolist()
    [[False, True], [True, False]]
    """
    found = {}
    for name, most in count.items():
        x = scores[name]
        mask = torch.zeros(x.numel(), dtype=torch.bool)
        mask[x.reshape(-1).sort(descending=True, stable=True).indices[:most]] = True
        found[name] = mask.view(x.shape)
    return found


def thin(values: Tree, masks: Tree) -> Tree:
    """The kept entries of each masked tensor, in order, and the other tensors as they are; flat where dtypes allow."""
    return tree.pack({name: x[masks[name]] if name in masks else x for name, x in values.items()})


def fill(values: Tree, masks: Tree) -> dict[str, Tensor]:
    """What `thin` was given, with zeros where nothing was kept.

    Raises:
        TreeError: a tensor does not have as many entries as its mask.
    """
    found = dict(values)
    for name, mask in masks.items():
        if values[name].numel() != int(mask.sum()):
            raise TreeError(f"{name} has {values[name].numel()} entries, and its mask keeps {int(mask.sum())}")
        found[name] = values[name].new_zeros(mask.shape)
        found[name][mask] = values[name]
    return found


def written(masks: Tree) -> Tree:
    """Masks as they are sent: a bit an entry, and the shapes, which are smaller than the model's where units are gone."""
    every = torch.cat([mask.reshape(-1) for mask in masks.values()])
    shapes = torch.tensor([n for m in masks.values() for n in m.shape], dtype=torch.int32)
    return {BITS: bits.pack(every.to(torch.uint8), 1), SHAPES: shapes}


def read(parts: Tree, axes: Axes) -> dict[str, Tensor]:
    """The masks that `written` was given."""
    lengths = iter(parts[SHAPES].tolist())
    shapes = {name: torch.Size(next(lengths) for _ in range(count)) for name, count in axes.items()}
    sizes = [shape.numel() for shape in shapes.values()]
    every = bits.unpack(parts[BITS], 1, sum(sizes)).bool()
    return {name: x.view(shape) for x, (name, shape) in zip(every.split_with_sizes(sizes), shapes.items(), strict=True)}


def masked(local: Local[Any], axes: Axes, name: str) -> Local[Any]:
    """Local work on a pruned model: pruned entries stay at zero, and what was learnt of the others is the payload.

    The client's memory keeps the mask. Raises ConfigError where the fold has no gradient to mask.
    """

    def start(assignment: Assignment, memory: Tree) -> tuple[Tree, dict[str, Tree]]:
        parts = assignment.tree if BITS in assignment.tree else tree.take(memory, f"{name}/")
        if BITS not in parts or int(parts[SINCE]) != int(assignment.tree[SINCE]):
            raise TreeError("its mask was sent in an earlier round and is not remembered here; it will be sent again")
        masks = read(parts, axes)
        params = fill(tree.drop(assignment.tree, "mask/"), masks)
        return params, {"mask": {n: masks[n].to(x.dtype) if n in masks else torch.ones_like(x) for n, x in params.items()}}

    def bend(grads: list[Tensor], params: list[Tensor], context: Mapping[str, list[Tensor]]) -> None:
        torch._foreach_mul_(grads, context["mask"])

    def final(finished: Finished) -> tuple[Tree, Tree]:
        masks = {n: finished.context["mask"][n] > 0 for n in axes}
        sent = finished.assignment.tree
        parts = {n: sent[n].clone() for n in (BITS, SHAPES, SINCE)} if BITS in sent else {}
        return thin(finished.delta, masks), {**finished.memory, **tree.put(parts, f"{name}/")}

    return correct(local, name, start, bend, final)


def growth(task: Task, batch_size: int | None, axes: Axes) -> Local[Any]:
    """The largest entries of a client's gradient among those that are pruned, as many of each tensor as it is told."""
    inner = full_gradient(task, batch_size)

    def init(assignment: Assignment, memory: Tree) -> Any:
        masks = read(assignment.tree, axes)
        whole = assignment._replace(tree=fill(tree.drop(assignment.tree, "mask/"), masks))
        return inner.init(whole, memory), whole, masks

    def step(carry: Any, batch: Batch) -> Any:
        return inner.step(carry[0], batch), *carry[1:]

    def final(assignment: Assignment, carry: Any, seen: Seen) -> tuple[Update, Tree]:
        of, whole, masks = carry
        update, memory = inner.final(whole, of, seen)
        payload: dict[str, Tensor] = {}
        for (name, mask), most in zip(masks.items(), assignment.tree[MOST].tolist(), strict=True):
            g = update.tree[name].masked_fill(mask, 0.0).reshape(-1)
            at = g.abs().topk(most).indices.sort().values
            payload |= {f"at/{name}": at.int(), f"of/{name}": g[at]}
        return update._replace(tree=payload), memory

    return Local(init, step, final, inner.batching, payload="composite")


def grown(update: Update, masks: Tree, most: Mapping[str, int]) -> Update:
    """What `growth` sends, as gradients of the tensors that are pruned, zero elsewhere.

    Raises:
        TreeError: it is not of that form.
    """
    found = {}
    for name, mask in masks.items():
        at, of = (update.tree.get(f"{part}/{name}") for part in ("at", "of"))
        if at is None or of is None or at.shape != (most[name],) or of.shape != at.shape or at.dtype != torch.int32:
            raise TreeError(f"the gradient of {name} is not {most[name]} positions and as many values")
        if len(at) and (int(at.min()) < 0 or int(at.max()) >= mask.numel()):
            raise TreeError(f"the gradient of {name} names an entry beyond its {mask.numel()}")
        found[name] = of.new_zeros(mask.numel()).index_put_((at.long(),), of).view(mask.shape)
    return update._replace(tree=found)
