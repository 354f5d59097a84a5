"""Regression: mean squared error; with `models.linear` the multivariate linear model of the textbooks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from atoll.tasks.batch import part
from atoll.types import Batch, Task


def regression(module: nn.Module) -> Task:
    """Regression: batch "x" (n, ...) and "y" (n, outputs) or (n,); mean squared error, and mean absolute error.

    Both are in units of y (squared), and means over examples, so that they add up over batches and clients. A root
    mean squared error does not: take the root of the evaluated loss.

    >>> import torch
    >>> from atoll.models.linear import linear
    >>> task = regression(linear(2, 1))
    >>> batch = {"x": torch.zeros(4, 2), "y": torch.zeros(4)}
    >>> sorted(task.metrics), task.loss(task.forward(task.module, batch), batch).shape
    (['mae'], torch.Size([]))
    """
    return Task(module, squared_error, _forward, {"mae": absolute_error}, about="regression, mean squared error")


def squared_error(outputs: Tensor, batch: Batch) -> Tensor:
    """Mean squared error over all examples and outputs."""
    return F.mse_loss(outputs, wanted(outputs, batch))


def absolute_error(outputs: Tensor, batch: Batch) -> Tensor:
    """Mean absolute error over all examples and outputs."""
    return F.l1_loss(outputs, wanted(outputs, batch))


def wanted(outputs: Tensor, batch: Batch) -> Tensor:
    """`y` in the shape of the outputs: (n,) beside (n, 1) would broadcast to (n, n) in silence."""
    return part(batch, "y").to(outputs.dtype).reshape(outputs.shape)


def _forward(module: nn.Module, batch: Batch) -> Tensor:
    outputs: Tensor = module(part(batch, "x"))
    return outputs
