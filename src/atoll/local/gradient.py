"""Loss and gradient of a task at given parameters: mixed precision, accumulation and checkpointing live here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from atoll.errors import ConfigError
from atoll.local.binding import binding
from atoll.types import Batch, Task

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

# (parameters, buffers, batch) -> (mean loss over the batch, 0-d and detached; a gradient for each parameter, in order)
Gradient: TypeAlias = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Batch], tuple[Tensor, list[Tensor]]]


def gradient(task: Task, precision: Precision = "fp32", accumulate: int = 1, checkpointing: bool = False) -> Gradient:
    """The gradient of `task` at tensors that need not be the module's own.

    precision: the forward pass under autocast (parameters and gradients keep their dtype). accumulate: the batch
    is computed in that many parts, for less memory; the sum is the whole batch's gradient, up to rounding.
    checkpointing: activations of the module's children are recomputed in the backward pass (arXiv:1604.06174).
    """
    if precision not in ("fp32", *_AUTOCAST):
        raise ConfigError(f"precision = {precision!r}: must be fp32, bf16 or fp16")
    if accumulate < 1:
        raise ConfigError(f"accumulate = {accumulate}: must be 1 or more parts of a batch")
    module, bound = task.module, binding(task.module)
    device = next(module.parameters()).device.type
    forward = _checkpointed(task) if checkpointing else task.forward

    def whole(params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        bound.bind(params, buffers)
        with torch.autocast(device, _AUTOCAST[precision]) if precision != "fp32" else nullcontext():
            loss = task.loss(forward(module, batch), batch)
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)
        return loss.detach(), list(grads)

    def in_parts(params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        size, counted = len(next(iter(batch.values()))), task.count(batch)
        part = -(-size // accumulate)
        total = torch.zeros(())
        sums: list[Tensor] = []
        for start in range(0, size, part):
            piece = {name: x[start : start + part] for name, x in batch.items()}
            count = task.count(piece)
            if not count and counted:
                continue  # a part in which nothing counts (padding alone): its mean is not a number
            share = count / max(counted, 1)  # the loss is a mean over what the task counts
            loss, grads = whole(params, buffers, piece)
            total = total + share * loss
            if sums:
                torch._foreach_add_(sums, grads, alpha=share)
            else:
                sums = [g * share for g in grads]
        return total, sums

    return whole if accumulate == 1 else in_parts


def clip_(grads: list[Tensor], norm: float) -> None:
    """Scale gradients down, in place, to a Euclidean norm of at most `norm` over all of them.

    >>> grads = [torch.tensor([3.0]), torch.tensor([4.0])]
    >>> clip_(grads, 1.0)
    >>> [round(float(g), 3) for g in grads]
    [0.6, 0.8]
    """
    length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    torch._foreach_mul_(grads, (norm / (length + 1e-6)).clamp(max=1.0))


def _checkpointed(task: Task) -> Callable[[nn.Module, Batch], Any]:
    """The task's forward pass with its activations dropped and recomputed.

    A Hugging Face model checkpoints block by block itself; any other module is checkpointed as a whole.
    """
    enable: Any = getattr(task.module, "gradient_checkpointing_enable", None)
    if enable is not None:
        enable({"use_reentrant": False})
        return task.forward
    counting: list[Any] = [part for part in task.module.modules() if getattr(part, "track_running_stats", False)]

    @contextmanager
    def again() -> Iterator[None]:
        # Batch norm counted this batch in the first pass; with momentum 0 the second one leaves its statistics alone.
        own = [part.momentum for part in counting]
        for part in counting:
            part.momentum = 0.0
        try:
            yield
        finally:
            for part, momentum in zip(counting, own, strict=True):
                part.momentum = momentum

    return lambda module, batch: checkpoint(
        task.forward, module, batch, use_reentrant=False, context_fn=lambda: (nullcontext(), again())
    )
