"""Forecasting: from windows of the past to the whole horizon at once."""

from __future__ import annotations

from torch import Tensor, nn

from atoll.tasks.batch import part
from atoll.tasks.regression import absolute_error, squared_error
from atoll.types import Batch, Task


def forecast(module: nn.Module) -> Task:
    """Forecasting: batch "x" (n, past, features) -> "y" (n, horizon); mean squared error, and mean absolute error.

    Both are means over windows and steps of the horizon, in the data set's units (often standardised).

    >>> import torch
    >>> from atoll.models.lstm import lstm
    >>> task = forecast(lstm(features=1, horizon=7))
    >>> task.forward(task.module, {"x": torch.zeros(4, 28, 1)}).shape
    torch.Size([4, 7])
    """
    return Task(module, squared_error, _forward, {"mae": absolute_error}, about="forecasting, mean squared error")


def _forward(module: nn.Module, batch: Batch) -> Tensor:
    outputs: Tensor = module(part(batch, "x"))
    return outputs
