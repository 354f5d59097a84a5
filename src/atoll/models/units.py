"""Which axes of which tensors belong to which hidden units, and cutting smaller dense models along them.

A hidden unit is a row of the tensors that make it and a column of those that read it; a model without some of its units is
the same module with smaller tensors (federated dropout, Caldas et al. 2018, arXiv:1812.07210; HeteroFL, arXiv:2010.01264).
The model's inputs and outputs are nobody's units.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from atoll import tree
from atoll.errors import ConfigError, TreeError
from atoll.types import Tree

Kept = Mapping[str, Tensor]  # by group, the numbers of its units that are there: int64, ascending; no entry: all of them


class Axis(NamedTuple):
    """One axis of a tensor, seen as (outer, units, inner).

    An LSTM's four gates are `outer`; the pixels of a channel, as columns of the dense layer after it, are `inner`.
    """

    tensor: str
    axis: int
    reads: bool = False  # the tensor reads the units; otherwise it makes them
    outer: int = 1
    inner: int = 1


class Units(NamedTuple):
    """A group of hidden units that are there or not, each by itself."""

    name: str
    size: int
    axes: tuple[Axis, ...]


def hidden_units(module: nn.Module) -> tuple[Units, ...]:
    """The groups of a module: its dense and convolutional layers but the last, as far as their readers are known.

    Found in `nn.Sequential`, in feed-forward blocks by the usual names of their layers (`_PAIRS`), and in modules that have
    a method `hidden_units()` and say it themselves. Groups with a frozen or tied tensor are left out: they can't be cut.

    Raises:
        ConfigError: there is none.

    >>> from atoll.models.mlp import mlp
    >>> [(group.name, group.size) for group in hidden_units(mlp(4, [3, 2], 2))]
    [('hidden1', 3), ('hidden2', 2)]
    """
    tensors = _own(module)
    found = tuple(g for g in _found(module, "") if all(a.tensor in tensors for a in g.axes))
    if not found:
        raise ConfigError(
            f"no hidden units are known of {type(module).__name__}: use nn.Sequential, or give it a method hidden_units() "
            f"that returns its atoll.models.units.Units"
        )
    return found


def cut(groups: Sequence[Units], kept: Kept, values: Tree) -> Tree:
    """The tensors of the smaller model: a copy, flat where dtypes allow.

    >>> from atoll.models.mlp import mlp
    >>> model = mlp(4, [3], 2)
    >>> small = cut(hidden_units(model), {"hidden1": torch.tensor([0, 2])}, dict(model.named_parameters()))
    >>> [tuple(x.shape) for x in small.values()]
    [(2, 4), (2,), (2, 2), (2,)]
    """
    where, found = places(groups, kept), {}
    for name, x in values.items():
        for axis, index in where.get(name, {}).items():
            x = x.detach().index_select(axis, index)
        found[name] = x
    return tree.pack(found)


def put(groups: Sequence[Units], kept: Kept, small: Tree, into: Tree) -> Tree:
    """Write the smaller model's tensors to their places in those of the whole one; returns `into`.

    Raises:
        TreeError: a tensor is not of the shape that `cut` gives it.
    """
    where = places(groups, kept)
    for name, x in small.items():
        whole, index = into[name], where.get(name, {})
        wanted = tuple(len(index[i]) if i in index else n for i, n in enumerate(whole.shape))
        if tuple(x.shape) != wanted:
            raise TreeError(f"{name} of a smaller model is {tuple(x.shape)}; with the units that it was given it is {wanted}")
        whole[grid(whole.shape, index)] = x.to(whole.dtype)
    return into


def held(groups: Sequence[Units], kept: Kept, like: Tree) -> dict[str, Tensor]:
    """1.0 (float64) where the smaller model has an entry, 0.0 elsewhere; of length 1 along axes that nobody cuts."""
    where = places(groups, kept)
    axes = {(a.tensor, a.axis) for g in groups for a in g.axes}
    found = {}
    for name, x in like.items():
        shape = torch.Size(n if (name, i) in axes else 1 for i, n in enumerate(x.shape))
        found[name] = torch.zeros(shape, dtype=torch.float64)
        found[name][grid(shape, where.get(name, {}))] = 1.0
    return found


def places(groups: Sequence[Units], kept: Kept) -> dict[str, dict[int, Tensor]]:
    """By tensor and axis, the positions along it that belong to units that are kept."""
    found: dict[str, dict[int, Tensor]] = {}
    for group in groups:
        if group.name not in kept:
            continue
        units = kept[group.name]
        for at in group.axes:
            spread = torch.arange(at.outer)[:, None, None] * (group.size * at.inner)
            index = spread + units[:, None] * at.inner + torch.arange(at.inner)
            found.setdefault(at.tensor, {})[at.axis] = index.reshape(-1)
    return found


def alive(groups: Sequence[Units], masks: Tree) -> dict[str, Tensor]:
    """The units that anything reads where only the entries of the masks (bool) are not zero: the others can go.

    A unit read only by units that nobody reads goes too. One unit of each group stays.

    >>> from atoll.models.mlp import mlp
    >>> masks = {"hidden1.weight": torch.ones(3, 4, dtype=torch.bool), "output.weight": torch.tensor([[True, False, True]] * 2)}
    >>> alive(hidden_units(mlp(4, [3], 2)), masks)["hidden1"].tolist()
    [0, 2]
    """
    left, before = {name: x.clone() for name, x in masks.items()}, -1
    found: dict[str, Tensor] = {}
    while (now := sum(int(x.sum()) for x in left.values())) != before:  # who was read by a dead unit alone is dead too
        before = now
        for group in groups:
            read = torch.zeros(group.size, dtype=torch.bool)
            for at in (at for at in group.axes if at.reads):
                read |= _by_unit(left[at.tensor], at).flatten(1).any(1) if at.tensor in left else True
            read[0] |= not read.any()
            found[group.name] = read.nonzero()[:, 0]
            for at in (at for at in group.axes if at.tensor in left):
                _by_unit(left[at.tensor], at)[~read] = False
    return found


def _by_unit(x: Tensor, at: Axis) -> Tensor:
    """A view of the tensor with the units on its first axis."""
    first = x.movedim(at.axis, 0)
    return first.view(at.outer, len(first) // (at.outer * at.inner), at.inner, *first.shape[1:]).movedim(1, 0)


def grid(shape: torch.Size, index: Mapping[int, Tensor]) -> tuple[Any, ...]:
    """What to index a tensor of that shape with, for all combinations of the positions along its axes."""
    last = max(index, default=-1)
    full = [index[i] if i in index else torch.arange(shape[i]) for i in range(last + 1)]
    return tuple(x.view(-1, *(1 for _ in range(last - i))) for i, x in enumerate(full)) or (...,)


def scalable(module: nn.Module, groups: Sequence[Units]) -> None:
    """Let the layers that read the groups obey `scaling`. A recurrent layer reads its own units unscaled."""
    for name in {a.tensor.rpartition(".")[0] for g in groups for a in g.axes if a.reads}:
        part = module.get_submodule(name)
        if isinstance(part, (nn.Linear, *_CONVOLUTIONS)) and _scaled not in part._forward_pre_hooks.values():
            part.register_forward_pre_hook(_scaled)


@contextmanager
def scaling() -> Iterator[None]:
    """Inside, layers make up for units that are not there: their inputs times all units over those present.

    This is the 1 / keep of dropout, and HeteroFL's scaler. A layer looks at the weight that is bound to it.
    """
    token = _SCALING.set(True)
    try:
        yield
    finally:
        _SCALING.reset(token)


_SCALING: ContextVar[bool] = ContextVar("scaling", default=False)


def _scaled(part: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    whole = part.in_features if isinstance(part, nn.Linear) else part.in_channels
    present = part.weight.shape[1]
    return (inputs[0] * (whole / present), *inputs[1:]) if _SCALING.get() and present < whole else None


def _own(module: nn.Module) -> set[str]:
    """The names of tensors that are trained, or travel as buffers, and have no other name."""
    named: list[tuple[str, Tensor]] = [(n, p) for n, p in module.named_parameters(remove_duplicate=False) if p.requires_grad]
    named += [(n, b) for n, b in module.named_buffers(remove_duplicate=False) if b.is_floating_point()]
    seen = [id(x) for _, x in named]
    return {name for name, x in named if seen.count(id(x)) == 1}


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Layers that keep every unit to itself, and those that do so where a unit is a channel.
_APART = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Softplus),
    *(nn.Identity, nn.Dropout),
)
_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Dropout1d, nn.Dropout2d),
)
# Feed-forward blocks: the layers that make the hidden units, and the one that reads them.
_PAIRS = (
    (("gate_proj", "up_proj"), "down_proj"),  # Llama, Qwen, Mistral, Gemma
    (("intermediate.dense",), "output.dense"),  # BERT
    (("up",), "down"),
    (("linear1",), "linear2"),  # nn.TransformerEncoderLayer
    (("lin1",), "lin2"),  # DistilBERT
    (("fc1",), "fc2"),
)


def _found(module: Any, prefix: str) -> Iterator[Units]:
    if callable(getattr(module, "hidden_units", None)):
        for group in module.hidden_units():
            axes = tuple(a._replace(tensor=prefix + a.tensor) for a in group.axes)
            yield Units(prefix + group.name, group.size, axes)
        return
    if isinstance(module, nn.Sequential):
        yield from _chained(_layers(module, prefix))
        return
    for makers, reader in _PAIRS:
        layers, reads = [_layer(module, name) for name in makers], _layer(module, reader)
        linear = all(isinstance(x, nn.Linear) for x in (*layers, reads))
        if linear and {x.out_features for x in layers} == {reads.in_features}:
            made = [axis for x, name in zip(layers, makers, strict=True) for axis in _rows(x, prefix + name)]
            yield Units(prefix + makers[0], reads.in_features, (*made, Axis(f"{prefix}{reader}.weight", 1, True)))
    for name, child in module.named_children():
        yield from _found(child, f"{prefix}{name}.")


def _layer(module: nn.Module, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part, None)  # type: ignore[assignment]
    return module


def _layers(module: nn.Sequential, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers of a sequence and of sequences in it, in the order of the forward pass."""
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential):
            yield from _layers(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child


def _chained(layers: Iterator[tuple[str, Any]]) -> Iterator[Units]:
    """Each layer's units, read by the next layer that has weights."""
    made: Units | None = None
    channels = flat = False
    for name, layer in layers:
        convolves = isinstance(layer, _CONVOLUTIONS)
        if isinstance(layer, nn.Linear) or (convolves and layer.groups == 1):
            if made and (read := _read(name, layer, made.size, channels, flat)):
                yield made._replace(axes=(*made.axes, read))
            made = Units(name, layer.out_channels if convolves else layer.out_features, tuple(_rows(layer, name)))
            channels, flat = convolves, False
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and not flat:
            if made and layer.num_features == made.size:
                parts = (part for part in ("weight", "bias", "running_mean", "running_var") if getattr(layer, part) is not None)
                made = made._replace(axes=(*made.axes, *(Axis(f"{name}.{part}", 0) for part in parts)))
        elif isinstance(layer, nn.Flatten):
            flat = True
        elif not (isinstance(layer, _APART) or (channels and isinstance(layer, _POOLS))):
            made = None
            yield from _found(layer, f"{name}.")


def _read(name: str, layer: Any, count: int, channels: bool, flat: bool) -> Axis | None:
    """How a layer reads the units before it: of a flattened image a channel is a span of columns."""
    dense = isinstance(layer, nn.Linear)
    width = layer.in_features if dense else layer.in_channels
    times, rest = divmod(width, count)
    if rest or (times > 1 and not flat) or (channels and dense and not flat) or (not dense and (flat or not channels)):
        return None
    return Axis(f"{name}.weight", 1, True, inner=times) if channels else Axis(f"{name}.weight", 1, True, outer=times)


def _rows(layer: Any, name: str) -> Iterator[Axis]:
    yield Axis(f"{name}.weight", 0)
    if layer.bias is not None:
        yield Axis(f"{name}.bias", 0)
