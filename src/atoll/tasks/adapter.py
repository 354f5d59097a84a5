"""Adapters through PEFT: LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685), W x + (alpha / rank) B A x, W frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll.errors import ConfigError, missing_extra, unknown
from atoll.models.shapes import named, query_and_value

if TYPE_CHECKING:
    from torch import nn

    from atoll.types import Tree


@dataclasses.dataclass(frozen=True, slots=True)
class Adapter:
    """A low-rank adapter: what is trained instead of the model."""

    rank: int = 8
    alpha: float = 16.0  # the product B A is scaled by alpha / rank
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None  # names of linear layers; None: the query and value projections


def lora(rank: int = 8, alpha: float = 16.0, dropout: float = 0.0, targets: Sequence[str] | None = None) -> Adapter:
    """A LoRA adapter of the given rank on the linear layers named by `targets`; None: queries and values.

    Raises:
        ConfigError: a value is out of range.

    >>> lora(rank=4, targets=["q_proj", "v_proj"])
    Adapter(rank=4, alpha=16.0, dropout=0.0, targets=('q_proj', 'v_proj'))
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"adapter rank {rank!r} must be a whole number of at least 1.")
    if not alpha > 0:
        raise ConfigError(f"adapter alpha {alpha!r} must be above 0: the adapter is scaled by alpha / rank.")
    if not 0 <= dropout < 1:
        raise ConfigError(f"adapter dropout {dropout!r} must be at least 0 and below 1.")
    if isinstance(targets, str) or (targets is not None and not targets):
        raise ConfigError(f"adapter targets {targets!r} must be a list of layer names, such as ['q_proj', 'v_proj'].")
    return Adapter(rank, float(alpha), float(dropout), None if targets is None else tuple(targets))


def read(value: Adapter | Mapping[str, Any] | None) -> Adapter | None:
    """An adapter from a job file's table, checked; None stays None: the whole model is trained.

    Raises:
        ConfigError: an unknown key, or a value out of range.

    >>> read({"rank": 4, "targts": ["q_proj"]})
    Traceback (most recent call last):
    atoll.errors.UnknownName: no adapter setting is called 'targts'; did you mean 'targets'? Known: alpha, dropout, rank, targets.
    """
    if value is None or isinstance(value, Adapter):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"adapter {value!r} must be a table, such as {{ rank = 8, alpha = 16 }}.")
    known = [field.name for field in dataclasses.fields(Adapter)]
    for key in value:
        if key not in known:
            raise unknown("adapter setting", str(key), known)
    return lora(**value)


def attach(module: nn.Module, adapter: Adapter, kind: str) -> nn.Module:
    """The module with the adapter in it: base frozen, adapter in float32, B zero so that nothing has changed yet.

    Args:
        kind: PEFT's task type; "SEQ_CLS" also trains the new classification head.

    Raises:
        ConfigError: no linear layer bears a target's name.
        MissingExtra: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise missing_extra("peft", "llm", "adapters") from None
    kinds = {name: type(part).__name__ for name, part in module.named_modules() if getattr(part, "weight", None) is not None}
    layers = list(kinds)
    targets = adapter.targets if adapter.targets is not None else query_and_value(layers)
    for target in targets:
        if not any(named(layer, (target,)) for layer in layers):
            raise unknown("layer of the model", target, {layer.rpartition(".")[2] for layer in layers})
    alpha: Any = int(adapter.alpha) if adapter.alpha.is_integer() else adapter.alpha  # as everyone writes it in the JSON
    config = LoraConfig(
        task_type=kind,
        r=adapter.rank,
        lora_alpha=alpha,
        lora_dropout=adapter.dropout,
        target_modules=sorted(targets),
        fan_in_fan_out=any(kinds[layer] == "Conv1D" for layer in layers if named(layer, targets)),  # GPT-2's layout
    )
    adapted: nn.Module = get_peft_model(module, config)
    for part in module.modules():  # BART keeps a bias as a buffer: of a frozen base nothing is sent
        part._non_persistent_buffers_set.update(part._buffers)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # PEFT leaves a new head in the base's dtype
    return adapted


def save(module: Any, parameters: Tree, folder: str) -> None:
    """Write what `PeftModel.from_pretrained(base, folder)` loads: adapter_model.safetensors and adapter_config.json.

    Args:
        module: what `attach` returned.
        parameters: its trained tensors, by their names in the module.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    named_by_peft = get_peft_model_state_dict(module, state_dict=dict(parameters), save_embedding_layers=False)
    tensors = {name: x.detach().cpu().contiguous().clone() for name, x in named_by_peft.items()}  # may be views of one buffer
    save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
    config = dataclasses.replace(module.peft_config["default"], inference_mode=True)
    config.save_pretrained(str(place))
