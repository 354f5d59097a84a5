"""Causal language modelling: any Hugging Face decoder, whole or through an adapter, judged by nats a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from atoll.errors import missing_extra
from atoll.tasks.adapter import Adapter
from atoll.tasks.batch import part
from atoll.tasks.huggingface import inputs, load
from atoll.tasks.tokens import count_tokens, next_tokens, token_accuracy, token_loss
from atoll.types import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

_SHORT = 128  # tokens


def causal_lm(
    model: str = "smollm2-135m",
    adapter: Adapter | Mapping[str, Any] | None = None,
    dtype: str = "auto",
    gradient_checkpointing: bool = False,
    seed: int = 0,
) -> Task:
    """Causal language model by path, hub name or "smollm2-135m": nats a token, and token accuracy.

    Args:
        model: a folder that `from_pretrained` reads, a Hugging Face hub name, or a name that Atoll knows.
        adapter: `lora(...)` or a table of its settings: only that is trained and sent; None: the whole model is.
        dtype: of the base; "auto" is bf16 under an adapter where the CPU gains, else fp32. Adapters are fp32.
        gradient_checkpointing: recompute each layer in the backward pass: less memory, a third more time.
        seed: of the adapter's first values.

    The batch holds "input_ids" (n, length), int64; optional are "labels" (n, length), -100 where a token is not
    judged, and "attention_mask" (n, length), only needed when padding comes first. Perplexity is exp(loss).

    Raises:
        ConfigError: an adapter setting or the dtype is wrong.
        FetchError: the model is not there and can't be fetched.
        MissingExtra: transformers or PEFT is not installed.

    >>> causal_lm(adapter={"rnk": 8})
    Traceback (most recent call last):
    atoll.errors.UnknownName: no adapter setting is called 'rnk'; did you mean 'rank'? Known: alpha, dropout, rank, targets.
    """
    try:
        import transformers as _  # noqa: F401
    except ImportError:
        raise missing_extra("transformers", "llm", "causal language models") from None
    loaded = load("AutoModelForCausalLM", "CAUSAL_LM", model, adapter, dtype, gradient_checkpointing, seed)
    # Checkpointing computes again outside of `forward`, so the kernel can't be chosen there.
    forward = _forward if gradient_checkpointing else _forward_short
    metrics = {"token_accuracy": _accuracy}
    return Task(loaded.module, _loss, forward, metrics, _count, loaded.save, f"causal language model {loaded.about}")


def _forward_short(module: nn.Module, batch: Batch) -> Tensor:
    """`_forward`, with the plain attention kernel where a CPU's fused one is slow: the backward pass, bf16, short inputs.

    Milliseconds of forward and backward, 9 heads of 64, one thread of a Xeon with AMX, fused and plain: 18.7 and 8.3
    for 8 x 64 tokens, 19.3 and 11.4 for 4 x 128, 19.6 and 23.0 for 4 x 192. In float32 the fused kernel always wins.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    ids = part(batch, "input_ids")
    plain = ids.shape[1] <= _SHORT and ids.device.type == "cpu" and torch.is_grad_enabled() and _is_bf16(module)
    if not plain:
        return _forward(module, batch)
    with sdpa_kernel(SDPBackend.MATH):
        return _forward(module, batch)


def _is_bf16(module: nn.Module) -> bool:
    import torch

    first = next((p for p in module.parameters()), None)  # the embedding
    return first is not None and first.dtype == torch.bfloat16


def _forward(module: nn.Module, batch: Batch) -> Tensor:
    part(batch, "input_ids")
    # Padding at the end can't be seen from before it, so without a mask the faster causal kernel is used.
    logits: Tensor = module(**inputs(batch, "input_ids", "attention_mask"), use_cache=False).logits
    return logits


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    return token_loss(logits, next_tokens(batch))


def _accuracy(logits: Tensor, batch: Batch) -> Tensor:
    return token_accuracy(logits, next_tokens(batch))


def _count(batch: Batch) -> int:
    return count_tokens(next_tokens(batch))
