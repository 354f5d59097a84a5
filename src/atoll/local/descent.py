"""Local training as a fold: the parameters received, changed in place a batch at a time; the payload is y - w.

Everything that follows gradients (sgd, adamw, and with a correction FedProx, SCAFFOLD, FedDyn, ...) is this fold.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from atoll import tree
from atoll.errors import ConfigError
from atoll.local.binding import binding
from atoll.local.gradient import Gradient, clip_
from atoll.local.kept import recalled, remembered
from atoll.local.optimiser import Optimiser, State
from atoll.local.schedule import Schedule
from atoll.types import Assignment, Batch, Batching, Captured, Correction, Descent, Finished, Local, Seen, Task, Tree, Update


class Carry(NamedTuple):
    """What a client's descent carries from batch to batch."""

    params: dict[str, Tensor]  # y, leaves that require gradients, updated in place
    buffers: dict[str, Tensor]
    state: State  # of the optimiser
    context: dict[str, list[Tensor]]  # of the correction, in the order of params
    loss: Tensor  # 0-d: the sum of the batches' mean losses
    lr: float
    start: Tree  # w, as received
    trained: Tree  # y again, as one tree: views of one buffer where dtypes allow
    kept: tuple[Assignment | None, dict[str, Tree], Tree]  # for the correction: assignment, context, memory


class Recipe(NamedTuple):
    """The options of a descent that are the same for every client."""

    task: Task
    optimiser: Optimiser
    lr: float
    schedule: Schedule
    gradient: Gradient
    batching: Batching
    clip_norm: float | None


def descent(recipe: Recipe, correction: Correction | None = None) -> Local[Carry]:
    """The fold of a recipe, its gradient corrected or plain."""
    if not recipe.lr > 0:
        raise ConfigError(f"lr = {recipe.lr}: a learning rate must be above 0")
    module, bound, optimiser = recipe.task.module, binding(recipe.task.module), recipe.optimiser

    def init(assignment: Assignment, memory: Tree) -> Carry:
        start, context = correction.start(assignment, memory) if correction else (assignment.tree, {})
        bound.check(start)
        if not module.training:  # to set it again would visit every layer for each client
            module.train()
        trained = tree.pack(start)
        params = {name: trained[name].requires_grad_() for name in bound.params}
        lists = {key: [t[name] for name in params] for key, t in context.items() if t}
        lr = recipe.lr * recipe.schedule.factor(assignment.round)
        buffers = {name: trained[name] for name in bound.buffers}
        state = optimiser.init(list(params.values()))
        if recipe.batching.keep:
            state = recalled(assignment, memory, state)
        return Carry(params, buffers, state, lists, torch.zeros(()), lr, start, trained, (assignment, dict(context), memory))

    def step(carry: Carry, batch: Batch) -> Carry:
        loss, grads = recipe.gradient(carry.params, carry.buffers, batch)
        params = list(carry.params.values())
        with torch.no_grad():
            if correction:
                correction.gradient(grads, params, carry.context)
            if recipe.clip_norm is not None:
                clip_(grads, recipe.clip_norm)
            optimiser.step(params, grads, carry.state, carry.lr)
            carry.loss.add_(loss)
        return carry

    def final(assignment: Assignment, carry: Carry, seen: Seen) -> tuple[Update, Tree]:
        with torch.no_grad():
            delta = tree.axpy_(_detached(carry.trained), carry.start, -1.0)
        loss = float(carry.loss) / seen.steps
        payload, memory = delta, carry.kept[2]
        if correction:
            context = carry.kept[1]
            lr_sum = carry.lr * seen.steps
            payload, memory = correction.final(Finished(assignment, delta, context, memory, seen.steps, lr_sum, loss))
        if recipe.batching.keep:
            memory = {**memory, **remembered(assignment, carry.state)}
        return Update(assignment.round, assignment.client, assignment.work, payload, float(seen.examples), {"loss": loss}), memory

    def correct(with_: Correction) -> Local[Any]:
        if correction is not None:
            raise ConfigError("a descent takes one correction: this local work is corrected already, give the plain one")
        return descent(recipe, with_)

    def captured(carry: Carry) -> Captured:
        lists = [x for group in (carry.state, carry.context) for tensors in group.values() for x in tensors]
        return Captured([*carry.params.values(), *carry.buffers.values(), *lists, carry.loss], (carry.lr,))

    about = Descent(optimiser.name, recipe.lr, optimiser.momentum, correct)
    payload: Literal["update", "composite"] = "composite" if correction and correction.composite else "update"
    return Local(init, step, final, recipe.batching, about, payload, captured, frozenset(bound.buffers))


def _detached(trained: Tree) -> Tree:
    if isinstance(trained, tree.Flat):
        return tree.Flat(trained.layout, trained.buffer.detach())
    return {name: x.detach() for name, x in trained.items()}
