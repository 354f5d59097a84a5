"""Classification: softmax cross-entropy over one label an example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from atoll.tasks.batch import part
from atoll.types import Batch, Task


def classification(module: nn.Module, forward: Callable[[nn.Module, Batch], Any] | None = None) -> Task:
    """Classification: batch "x" (n, ...) and "y" (n,), int64 classes; cross-entropy in nats, and accuracy.

    Args:
        module: maps x to logits (n, classes).
        forward: how to call it; None: `module(batch["x"])`.

    >>> import torch
    >>> from atoll.models.linear import linear
    >>> task = classification(linear(2, 3))
    >>> batch = {"x": torch.zeros(4, 2), "y": torch.tensor([0, 1, 2, 0])}
    >>> task.loss(task.forward(task.module, batch), batch).shape
    torch.Size([])
    """
    return Task(module, _loss, forward or _forward, {"accuracy": accuracy}, about="classification, cross-entropy")


def accuracy(logits: Tensor, batch: Batch) -> Tensor:
    """The share of examples whose largest logit is the label's."""
    return (logits.argmax(-1) == part(batch, "y")).float().mean()


def _forward(module: nn.Module, batch: Batch) -> Tensor:
    logits: Tensor = module(part(batch, "x"))
    return logits


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(logits, part(batch, "y"))
