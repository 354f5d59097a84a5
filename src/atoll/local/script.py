"""A user's own training loop, unchanged: it gets a module and batches, Atoll sends what it changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from atoll import tree
from atoll.local.binding import binding
from atoll.types import Assignment, Batch, Batching, Local, Seen, Task, Tree, Update


class Carry(NamedTuple):
    """The tree received and the batches so far: the loop runs when all are there."""

    start: Tree
    batches: list[Batch]
    memory: Tree


class Loader(Sequence[Any]):
    """The client's batches, to be iterated as often as the loop likes: as dicts, or as tuples of `fields`."""

    def __init__(self, batches: list[Batch], fields: Sequence[str] | None) -> None:
        self._batches, self._fields = batches, fields

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        batch = self._batches[index]
        return batch if self._fields is None else tuple(batch[name] for name in self._fields)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


def script(
    task: Task,
    train: Callable[..., Mapping[str, float] | None],
    batch_size: int | None = 32,
    fields: Sequence[str] | None = ("x", "y"),
) -> Local[Carry]:
    """Run `train(module, loader)` at the client; the payload is y - w, the metrics what it returns.

    `train` may build its own optimiser, loop over epochs, and step as it likes; the module starts each round from
    the parameters received. `fields`: the loader gives tuples of these (None: dicts). Algorithms that correct
    gradients (FedProx, SCAFFOLD, ...) refuse it, as they can't see its gradients.

    >>> import torch
    >>> from atoll.models.linear import linear
    >>> from atoll.tasks.regression import regression
    >>> def train(module, loader):
    ...     optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    ...     for x, y in loader:
    ...         optimiser.zero_grad()
    ...         loss = torch.nn.functional.mse_loss(module(x), y)
    ...         loss.backward()
    ...         optimiser.step()
    ...     return {"loss": loss.item()}
    >>> script(regression(linear(3, 1)), train).descent is None
    True
    """
    bound = binding(task.module)

    def init(assignment: Assignment, memory: Tree) -> Carry:
        bound.check(assignment.tree)
        return Carry(assignment.tree, [], memory)

    def final(assignment: Assignment, carry: Carry, seen: Seen) -> tuple[Update, Tree]:
        bound.restore()
        own = bound.state()
        with torch.no_grad():
            for name, x in own.items():
                x.copy_(carry.start[name])
        task.module.train()
        task.module.zero_grad(set_to_none=True)  # what the last client's loop left there is not this client's
        metrics = dict(train(task.module, Loader(carry.batches, fields)) or {})
        payload = tree.pack(tree.sub(own, carry.start))
        return Update(assignment.round, assignment.client, assignment.work, payload, float(seen.examples), metrics), carry.memory

    def step(carry: Carry, batch: Batch) -> Carry:
        carry.batches.append(batch)
        return carry

    return Local(init, step, final, Batching("train", batch_size, shuffle=True), averaged=frozenset(bound.buffers))
