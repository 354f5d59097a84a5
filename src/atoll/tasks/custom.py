"""One's own model, loss and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from atoll.errors import ConfigError
from atoll.tasks.batch import part
from atoll.types import Batch, Task

Measure = Callable[[Any, Batch], Tensor]  # (outputs, batch) -> 0-d tensor, the mean over the batch


def custom(
    module: nn.Module,
    loss: Measure,
    metrics: Mapping[str, Measure] | None = None,
    forward: Callable[[nn.Module, Batch], Any] | None = None,
) -> Task:
    """Your own model, loss and metrics.

    Args:
        module: any module; its parameters with `requires_grad=True`, and its persistent float buffers, are trained.
        loss: (outputs, batch) -> 0-d tensor, the mean over the batch.
        metrics: the same, by name.
        forward: how to call the module; None: `module(batch["x"])`.

    Raises:
        ConfigError: the module has nothing to train; or, at the first batch, the loss is not one number.

    >>> import torch
    >>> def loss(outputs, batch):  # heavy tails: Huber's loss
    ...     return torch.nn.functional.huber_loss(outputs[:, 0], batch["y"])
    >>> def bias(outputs, batch):
    ...     return (outputs[:, 0] - batch["y"]).mean()
    >>> task = custom(nn.Linear(2, 1), loss, {"bias": bias})
    >>> batch = {"x": torch.zeros(4, 2), "y": torch.zeros(4)}
    >>> task.loss(task.forward(task.module, batch), batch).shape
    torch.Size([])
    """
    if not any(p.requires_grad for p in module.parameters()):
        raise ConfigError(f"{type(module).__name__} has no parameter with requires_grad=True, so there is nothing to train.")
    measures = {name: _one_number(measure, f"metric {name!r}") for name, measure in (metrics or {}).items()}
    return Task(module, _one_number(loss, "loss"), forward or _forward, measures, about=type(module).__name__)


def _one_number(measure: Measure, what: str) -> Measure:
    def checked(outputs: Any, batch: Batch) -> Tensor:
        value = measure(outputs, batch)
        if not isinstance(value, Tensor) or value.dim():
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"the {what} gave {got}: it must be a 0-d tensor, the mean over the batch.")
        return value

    return checked


def _forward(module: nn.Module, batch: Batch) -> Any:
    return module(part(batch, "x"))
