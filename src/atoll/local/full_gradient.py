"""The gradient of a client's whole loss at the parameters received: FedSGD's client half (arXiv:1602.05629, section 2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from atoll import tree
from atoll.local.binding import binding
from atoll.local.gradient import Precision, gradient
from atoll.types import Assignment, Batch, Batching, Local, Seen, Task, Tree, Update


class Carry(NamedTuple):
    """Sums over the examples read so far."""

    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    sums: list[Tensor]  # of per-example gradients, in the order of params
    loss: Tensor
    memory: Tree
    counted: int  # what the task counts: examples, tokens


def full_gradient(
    task: Task,
    batch_size: int | None = None,
    precision: Precision = "fp32",
    checkpointing: bool = False,
    steps: int | None = None,
) -> Local[Carry]:
    """grad F_k(w) over all of the client's examples, in portions of `batch_size` only to bound memory.

    Buffers (batch norm's statistics) travel as differences, parameters as gradients. `steps`: of the client's next so many
    batches in place of all examples; it keeps its place in its data from round to round.

    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> full_gradient(regression(linear(3, 1))).batching.batch_size is None
    True
    """
    bound, of = binding(task.module), gradient(task, precision, checkpointing=checkpointing)
    goes_on = steps is not None
    batching = Batching("train", batch_size, 1, steps, shuffle=goes_on, keep=goes_on)

    def init(assignment: Assignment, memory: Tree) -> Carry:
        bound.check(assignment.tree)
        task.module.train()
        params = {name: assignment.tree[name].detach().clone().requires_grad_() for name in bound.params}
        buffers = {name: assignment.tree[name].clone() for name in bound.buffers}
        return Carry(params, buffers, [torch.zeros_like(p) for p in params.values()], torch.zeros(()), memory, 0)

    def step(carry: Carry, batch: Batch) -> Carry:
        loss, grads = of(carry.params, carry.buffers, batch)
        count = task.count(batch)
        with torch.no_grad():
            torch._foreach_add_(carry.sums, grads, alpha=count)
            carry.loss.add_(loss, alpha=count)
        return carry._replace(counted=carry.counted + count)

    def final(assignment: Assignment, carry: Carry, seen: Seen) -> tuple[Update, Tree]:
        torch._foreach_div_(carry.sums, max(carry.counted, 1))
        moved = {name: x - assignment.tree[name] for name, x in carry.buffers.items()}
        payload = tree.pack({**dict(zip(carry.params, carry.sums, strict=True)), **moved})
        metrics = {"loss": float(carry.loss) / max(carry.counted, 1)}
        return Update(assignment.round, assignment.client, assignment.work, payload, float(seen.examples), metrics), carry.memory

    return Local(init, step, final, batching, averaged=frozenset(bound.buffers))
