"""Sequence to sequence: any Hugging Face encoder-decoder (T5, BART), whole or through an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from atoll.errors import missing_extra
from atoll.tasks.adapter import Adapter
from atoll.tasks.batch import part
from atoll.tasks.huggingface import inputs, load
from atoll.tasks.tokens import count_tokens, token_accuracy, token_loss
from atoll.types import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn


def seq2seq(
    model: str,
    adapter: Adapter | Mapping[str, Any] | None = None,
    dtype: str = "auto",
    gradient_checkpointing: bool = False,
    seed: int = 0,
) -> Task:
    """Sequence to sequence (T5, BART) by path or hub name: nats a token of the answer, and token accuracy.

    The batch holds "input_ids" (n, length) and "labels" (n, answer), int64, -100 where a label is padding; optional
    is "attention_mask" (n, length), 0 where the input is padding. The arguments are those of `causal_lm`.

    Raises:
        ConfigError: an adapter setting or the dtype is wrong.
        FetchError: the model is not there and can't be fetched.
        MissingExtra: transformers or PEFT is not installed.

    >>> seq2seq("t5-small", dtype="fp31")
    Traceback (most recent call last):
    atoll.errors.UnknownName: no dtype is called 'fp31'; did you mean 'fp32'? Known: ...
    """
    try:
        import transformers as _  # noqa: F401
    except ImportError:
        raise missing_extra("transformers", "llm", "sequence-to-sequence models") from None
    loaded = load("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM", model, adapter, dtype, gradient_checkpointing, seed)
    metrics = {"token_accuracy": _accuracy}
    return Task(loaded.module, _loss, _forward, metrics, _count, loaded.save, f"sequence to sequence, {loaded.about}")


def _forward(module: nn.Module, batch: Batch) -> Tensor:
    part(batch, "input_ids")
    before = module.prepare_decoder_input_ids_from_labels(labels=part(batch, "labels"))  # type: ignore[operator]
    parts = inputs(batch, "input_ids", "attention_mask")
    logits: Tensor = module(**parts, decoder_input_ids=before, use_cache=False).logits
    return logits


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    return token_loss(logits, part(batch, "labels"))


def _accuracy(logits: Tensor, batch: Batch) -> Tensor:
    return token_accuracy(logits, part(batch, "labels"))


def _count(batch: Batch) -> int:
    return count_tokens(part(batch, "labels"))
