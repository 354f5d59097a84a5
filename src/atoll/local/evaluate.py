"""Loss and metrics of the model received on a client's own examples; nothing is trained and no tensor is sent."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from atoll.local.binding import binding
from atoll.types import Assignment, Batch, Batching, Local, Seen, Task, Tree, Update


class Carry(NamedTuple):
    """Sums so far."""

    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    sums: dict[str, Tensor]  # of mean times count, a metric
    counted: int
    memory: Tree


def evaluate(task: Task, batch_size: int | None = 256, split: str = "test", remember: str | None = None) -> Local[Carry]:
    """Means of the task's loss and metrics over a split; the weight is what the task counts (examples, tokens).

    `remember`: keep the loss in the client's memory under this name, for a later request of the round.

    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> evaluate(regression(linear(3, 1))).batching.split
    'test'
    """
    bound = binding(task.module)

    def init(assignment: Assignment, memory: Tree) -> Carry:
        bound.check(assignment.tree)
        params = {name: assignment.tree[name].detach() for name in bound.params}
        buffers = {name: assignment.tree[name] for name in bound.buffers}
        return Carry(params, buffers, {name: torch.zeros(()) for name in ("loss", *task.metrics)}, 0, memory)

    def step(carry: Carry, batch: Batch) -> Carry:
        task.module.eval()
        with torch.no_grad():
            bound.bind(carry.params, carry.buffers)
            outputs, count = task.forward(task.module, batch), task.count(batch)
            carry.sums["loss"].add_(task.loss(outputs, batch), alpha=count)
            for name, metric in task.metrics.items():
                carry.sums[name].add_(metric(outputs, batch), alpha=count)
        return carry._replace(counted=carry.counted + count)

    def final(assignment: Assignment, carry: Carry, seen: Seen) -> tuple[Update, Tree]:
        means = {name: float(total) / max(carry.counted, 1) for name, total in carry.sums.items()}
        memory = {**carry.memory, remember: torch.tensor(means["loss"])} if remember else carry.memory
        return Update(assignment.round, assignment.client, assignment.work, {}, float(carry.counted), means), memory

    return Local(init, step, final, Batching(split, batch_size))
