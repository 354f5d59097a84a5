"""A Hugging Face model as a task's module: loaded in the right dtype, with an adapter or whole, and how it is saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from atoll.errors import DataError, missing_extra
from atoll.rng import seeded
from atoll.tasks import adapter as adapters
from atoll.tasks.adapter import Adapter
from atoll.tasks.dtype import weights_dtype
from atoll.tasks.pretrained import in_dtype, quiet
from atoll.types import Batch, Tree

if TYPE_CHECKING:
    from torch import nn


class Loaded(NamedTuple):
    """A module, how its trained tensors are saved, and one line about it."""

    module: nn.Module
    save: Callable[[Tree, str], None]
    about: str


def load(
    auto: str,
    kind: str,
    model: str,
    adapter: Adapter | Mapping[str, Any] | None,
    dtype: str,
    gradient_checkpointing: bool,
    seed: int,
    **settings: Any,
) -> Loaded:
    """A pretrained model by transformers' class `auto`, with an adapter of PEFT's task type `kind`, or whole.

    Raises:
        ConfigError: an adapter setting or the dtype is wrong.
        FetchError: the model is not there and can't be fetched.
        DataError: the folder holds no such model.
        MissingExtra: transformers or PEFT is not installed.
    """
    low_rank = adapters.read(adapter)
    weights = weights_dtype(dtype, frozen=low_rank is not None)
    try:
        import transformers
    except ImportError:
        raise missing_extra("transformers", "llm", "language models") from None
    folder = in_dtype(model, str(weights).removeprefix("torch."))
    with seeded(seed), quiet():  # a new head and the adapter's A are drawn at random
        try:
            module = getattr(transformers, auto).from_pretrained(folder, dtype=weights, **settings)
        except (OSError, ValueError) as error:
            raise DataError(f"{model!r} holds no model that {auto} reads: {str(error).splitlines()[0]}") from error
        if low_rank is not None:
            module = adapters.attach(module, low_rank, kind)
    if gradient_checkpointing:
        # Not re-entrant: the re-entrant kind gives no gradient when the inputs, frozen embeddings, need none.
        with quiet():  # the method has a newer name in transformers 5, this one works in 4 as well
            module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    save = _save_adapter(module) if low_rank is not None else _save_whole(module, folder)
    return Loaded(module, save, _about(model, low_rank, str(weights).removeprefix("torch.")))


def inputs(batch: Batch, *names: str) -> dict[str, Any]:
    """Those of the named parts that the batch has."""
    return {name: batch[name] for name in names if name in batch}


def _save_adapter(module: nn.Module) -> Callable[[Tree, str], None]:
    def save(parameters: Tree, folder: str) -> None:
        adapters.save(module, parameters, folder)

    return save


def _save_whole(module: nn.Module, source: Path) -> Callable[[Tree, str], None]:
    """`from_pretrained(folder)` loads what this writes, tokenizer included where the source has one."""

    tied = _tied(module)

    def save(parameters: Tree, folder: str) -> None:
        state = {**module.state_dict(), **parameters}
        for name, first in tied.items():
            state[name] = state[first]
        with quiet():
            module.save_pretrained(folder, state_dict=state)  # type: ignore[operator]
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "vocab.txt"):
            if (source / name).exists():
                Path(folder, name).write_bytes((source / name).read_bytes())

    return save


def _tied(module: nn.Module) -> dict[str, str]:
    """Further names of a tied tensor -> its first name, under which it is trained and sent."""
    first: dict[int, str] = {}
    tied = {}
    for name, x in module.named_parameters(remove_duplicate=False):
        if first.setdefault(id(x), name) != name:
            tied[name] = first[id(x)]
    return tied


def _about(model: str, adapter: Adapter | None, dtype: str) -> str:
    if adapter is None:
        return f"{model}, all weights, {dtype}"
    targets = "queries and values" if adapter.targets is None else ", ".join(adapter.targets)
    return f"{model} in {dtype}, LoRA of rank {adapter.rank} (alpha {adapter.alpha:g}) on {targets}"
