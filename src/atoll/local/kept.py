"""An optimiser's state in the client's memory, so that the next round goes on with it: the inner state of DiLoCo."""

from __future__ import annotations

from atoll import tree
from atoll.errors import TreeError
from atoll.local.optimiser import State
from atoll.types import Assignment, Tree


def recalled(assignment: Assignment, memory: Tree, fresh: State) -> State:
    """The state that the client's last round of this work left; `fresh` in its first one.

    Raises:
        TreeError: what is remembered is of another model or optimiser.

    >>> import torch
    >>> first, fresh = Assignment(0, "a", "train", {}, 7), {"m": [torch.zeros(2)]}
    >>> recalled(first, remembered(first, {"m": [torch.ones(2)]}), fresh)
    {'m': [tensor([1., 1.])]}
    """
    own = tree.take(memory, _mark(assignment))
    if not own:
        return fresh
    wanted = {name: tuple(x.shape) for name, x in _named(fresh).items()}
    if wanted != {name: tuple(x.shape) for name, x in own.items()}:
        raise TreeError("the optimiser's state that this client remembers is of another model or optimiser; start a new run")
    # Copies: a step changes its state in place, and what a client remembers is its own until the update is safe.
    return {key: [own[f"{key}/{i}"].clone() for i in range(len(tensors))] for key, tensors in fresh.items()}


def remembered(assignment: Assignment, state: State) -> Tree:
    """The state as entries of the client's memory."""
    return tree.put({name: x.detach() for name, x in _named(state).items()}, _mark(assignment))


def _named(state: State) -> Tree:
    return {f"{key}/{i}": x for key, tensors in state.items() for i, x in enumerate(tensors)}


def _mark(assignment: Assignment) -> str:
    return f"kept/{assignment.work}/"
