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
    metrics = {"token_accuracy": _accuracy}
    return Task(loaded.module, _loss, _forward, metrics, _count, loaded.save, f"causal language model {loaded.about}")


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
