"""Sequence classification: any Hugging Face encoder with a new head (BERT and its family), whole or through an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from atoll.errors import ConfigError, missing_extra
from atoll.tasks.adapter import Adapter
from atoll.tasks.batch import part
from atoll.tasks.huggingface import inputs, load
from atoll.types import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn


def sequence_classification(
    model: str = "minilm",
    classes: int = 2,
    adapter: Adapter | Mapping[str, Any] | None = None,
    dtype: str = "auto",
    gradient_checkpointing: bool = False,
    seed: int = 0,
) -> Task:
    """Sequence classification with a BERT-like encoder by path, hub name or "minilm": cross-entropy, and accuracy.

    The batch holds "input_ids" (n, length) and "labels" (n,), both int64; optional are "attention_mask" (n, length), 0 where
    the input is padding, and "token_type_ids" (n, length). The head is new, and is trained beside an adapter.
    The other arguments are those of `causal_lm`.

    Raises:
        ConfigError: `classes`, an adapter setting or the dtype is wrong.
        FetchError: the model is not there and can't be fetched.
        MissingExtra: transformers or PEFT is not installed.

    >>> sequence_classification(classes=1)
    Traceback (most recent call last):
    atoll.errors.ConfigError: classes = 1 is no choice: give the number of different labels, at least 2.
    """
    if classes < 2:
        raise ConfigError(f"classes = {classes} is no choice: give the number of different labels, at least 2.")
    try:
        import transformers as _  # noqa: F401
    except ImportError:
        raise missing_extra("transformers", "llm", "sequence classifiers") from None
    auto = "AutoModelForSequenceClassification"
    loaded = load(auto, "SEQ_CLS", model, adapter, dtype, gradient_checkpointing, seed, num_labels=classes)
    _accept_any_dtype(loaded.module)
    about = f"{classes} classes of sequences, {loaded.about}"
    return Task(loaded.module, _loss, _forward, {"accuracy": _accuracy}, save=loaded.save, about=about)


def _accept_any_dtype(module: nn.Module) -> None:
    """A head in float32 behind a base in bfloat16: cast what it is given."""
    from torch import nn

    def cast(head: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        weight = next(iter(head.parameters()), None)
        return given if weight is None else (given[0].to(weight.dtype), *given[1:])

    for name, part_ in module.named_modules():
        if "modules_to_save" in name and isinstance(part_, nn.Linear):
            part_.register_forward_pre_hook(cast)


def _forward(module: nn.Module, batch: Batch) -> Tensor:
    part(batch, "input_ids")
    logits: Tensor = module(**inputs(batch, "input_ids", "attention_mask", "token_type_ids")).logits
    return logits


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    from torch.nn import functional as F

    return F.cross_entropy(logits.float(), part(batch, "labels"))


def _accuracy(logits: Tensor, batch: Batch) -> Tensor:
    return (logits.argmax(-1) == part(batch, "labels")).float().mean()
