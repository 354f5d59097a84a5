"""The loss and the metrics of models that predict tokens, in about one copy of the logits.

Logits are the largest tensor of a small language model's step: 4 x 128 tokens over 49,152 words are 100 MB in float32.
The usual way makes four such copies. Here the logits stay in the model's dtype, float32 exists for a few rows
at a time, and the gradient (softmax - one-hot, Bridle 1990) is written straight into the model's dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from atoll.tasks.batch import part
from atoll.types import Batch

IGNORE = -100  # the label of a position that is not judged, as in torch and transformers
_ROWS_ELEMENTS = 1 << 22  # of float32 at a time: 16 MB


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats a token, float32 (0-d); 0 when no position is judged.

    Args:
        logits: (..., vocabulary), any float dtype.
        targets: (...), int64; `IGNORE` where no token is judged.

    >>> token_loss(torch.zeros(1, 2, 4), torch.tensor([[3, IGNORE]])).exp()
    tensor(4.)
    """
    loss: Tensor = _TokenLoss.apply(logits.flatten(0, -2), targets.flatten())[0]  # type: ignore[no-untyped-call]
    return loss


def token_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """The share of judged positions whose likeliest token is the right one (0-d)."""
    right = (logits.argmax(-1) == targets).sum()  # an ignored position is never right: no token is -100
    return right / judged(targets)


def judged(targets: Tensor) -> Tensor:
    """How many positions are judged, at least 1 so that it divides (0-d)."""
    return (targets != IGNORE).sum().clamp_min(1)


def next_tokens(batch: Batch) -> Tensor:
    """The token after each position, (n, length), `IGNORE` at the last and wherever "labels" says so.

    Without "labels" every token of "input_ids" is judged that "attention_mask", if any, keeps.

    >>> next_tokens({"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.tensor([[1, 1, 0]])})
    tensor([[   6, -100, -100]])
    """
    labels = batch.get("labels")
    if labels is None:
        labels = part(batch, "input_ids")
        mask = batch.get("attention_mask")
        labels = labels if mask is None else labels.masked_fill(mask == 0, IGNORE)
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE)


def count_tokens(targets: Tensor) -> int:
    """How many positions are judged: what a mean over tokens is weighted by."""
    return int((targets != IGNORE).sum())


class _TokenLoss(torch.autograd.Function):
    """(rows, vocabulary) and (rows,) -> the mean, and each row's log-sum-exp for the gradient."""

    @staticmethod
    def forward(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        norms = torch.cat([rows.float().logsumexp(-1) for rows in torch.split(logits, _rows(logits))])
        chosen = logits.gather(-1, targets.clamp_min(0)[:, None])[:, 0].float()
        losses = (norms - chosen).masked_fill(targets == IGNORE, 0.0)
        return losses.sum() / judged(targets), norms

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        logits, targets, norms = ctx.saved_tensors
        scale = (grad / judged(targets)).expand_as(norms).masked_fill(targets == IGNORE, 0.0)
        out, size = torch.empty_like(logits), _rows(logits)
        for start in range(0, len(logits), size):
            at = slice(start, start + size)
            rows = (logits[at].float() - norms[at, None]).exp_()
            rows.scatter_add_(-1, targets[at].clamp_min(0)[:, None], rows.new_full((len(rows), 1), -1.0))
            out[at] = rows.mul_(scale[at, None])
        return out, None


def _rows(logits: Tensor) -> int:
    return max(1, _ROWS_ELEMENTS // logits.shape[-1])
