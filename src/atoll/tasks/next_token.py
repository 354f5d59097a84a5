"""Next-token prediction with one's own module, such as `models.transformer` over characters."""

from __future__ import annotations

from torch import Tensor, nn

from atoll.tasks.batch import part
from atoll.tasks.tokens import count_tokens, next_tokens, token_accuracy, token_loss
from atoll.types import Batch, Task


def next_token(module: nn.Module) -> Task:
    """Next-token prediction with your own module: nats a token, and token accuracy.

    Args:
        module: maps batch "input_ids" (n, length), int64, to logits (n, length, vocabulary). Optional in the batch:
            "labels" (n, length), -100 where a token is not judged, else "attention_mask" (n, length).

    >>> import torch
    >>> from atoll.models.transformer import transformer
    >>> task, batch = next_token(transformer(vocabulary=10)), {"input_ids": torch.zeros(2, 8, dtype=torch.int64)}
    >>> task.loss(task.forward(task.module, batch), batch).shape, task.count(batch)
    (torch.Size([]), 14)
    """
    return Task(module, _loss, _forward, {"token_accuracy": _accuracy}, _count, about="next token, nats a token")


def _forward(module: nn.Module, batch: Batch) -> Tensor:
    logits: Tensor = module(part(batch, "input_ids"))
    return logits


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    return token_loss(logits, next_tokens(batch))


def _accuracy(logits: Tensor, batch: Batch) -> Tensor:
    return token_accuracy(logits, next_tokens(batch))


def _count(batch: Batch) -> int:
    return count_tokens(next_tokens(batch))
