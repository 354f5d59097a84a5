"""What an algorithm needs to correct a client's gradient, and the refusal where the fold has none to correct."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from atoll.errors import ConfigError
from atoll.types import Assignment, Correction, Descent, Finished, Local, Tree


def descent_of(local: Local[Any], algorithm: str, plain_sgd: bool = False) -> Descent:
    """The gradient side of a fold, or a ConfigError that says what the algorithm needs."""
    if local.descent is None:
        raise ConfigError(f"{algorithm} corrects the client's gradient, which this local work hides: use sgd or adamw")
    found = local.descent
    if plain_sgd and (found.optimiser != "sgd" or found.momentum):
        given = found.optimiser + (f" with momentum {found.momentum}" if found.momentum else "")
        raise ConfigError(f"{algorithm} is defined for plain SGD at the client, not for {given}: use sgd with momentum 0")
    return found


def beside_start(assignment: Assignment, memory: Tree) -> tuple[Tree, dict[str, Tree]]:
    """Start from the tree received and keep it as context "start": what FedProx and FedDyn pull towards."""
    return assignment.tree, {"start": assignment.tree}


def unbent(grads: list[Tensor], params: list[Tensor], context: object) -> None:
    """Leave the gradient as it is."""


def plain(finished: Finished) -> tuple[Tree, Tree]:
    """The payload is y - w and the memory stays as it is."""
    return finished.delta, finished.memory


def correct(
    local: Local[Any],
    algorithm: str,
    start: Callable[[Assignment, Tree], tuple[Tree, dict[str, Tree]]] = beside_start,
    gradient: Any = unbent,
    final: Callable[[Finished], tuple[Tree, Tree]] = plain,
    plain_sgd: bool = False,
    composite: bool = False,
) -> Local[Any]:
    """The fold with its gradient corrected; ConfigError where the algorithm is not defined for it.

    `composite`: the payload that `final` gives is not y - w alone, so that a clip, say, would not mean what it says.
    """
    return descent_of(local, algorithm, plain_sgd).correct(Correction(start, gradient, final, composite))
