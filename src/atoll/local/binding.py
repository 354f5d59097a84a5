"""A module whose parameters are the tensors of a tree, without a copy and without `functional_call`'s cost a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from atoll.errors import TreeError
from atoll.types import Tree

Slot = tuple[dict[str, Tensor | None], str]  # the dict of a submodule that holds the tensor, and its key there


class Binding:
    """Where each trainable tensor of a module lives; tied parameters have several slots.

    Trained are the parameters with `requires_grad`; with them travel the persistent floating-point buffers
    (batch norm's running statistics). All else is the frozen base and stays as it is.
    """

    def __init__(self, module: nn.Module) -> None:
        self.params = _slots(module, "_parameters", {n for n, p in module.named_parameters() if p.requires_grad})
        floating = {n for n, b in module.named_buffers() if b.is_floating_point()} & module.state_dict().keys()
        self.buffers = _slots(module, "_buffers", floating)
        # A recurrent layer keeps a list of its weights beside the slots, which has to follow them.
        self._recurrent = [part for part in module.modules() if isinstance(part, nn.RNNBase)]
        self._bound: object = None
        self._own = {name: slots[0][0][slots[0][1]] for name, slots in {**self.params, **self.buffers}.items()}

    def bind(self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        """Make the module compute with these very tensors. Free when they are bound already."""
        if self._bound is params:
            return
        for slots, tensors in ((self.params, params), (self.buffers, buffers)):
            for name, tensor in tensors.items():
                for holder, key in slots[name]:
                    holder[key] = tensor
        self._follow()
        self._bound = params

    def restore(self) -> None:
        """Give the module its own tensors back."""
        for name, slots in {**self.params, **self.buffers}.items():
            for holder, key in slots:
                holder[key] = self._own[name]
        self._follow()
        self._bound = None

    def __reduce__(self) -> tuple[Callable[[nn.Module], Binding], tuple[nn.Module]]:
        """Pickled as its module, so that after unpickling, too, a module has one binding and that one is its own."""
        return binding, (next(module for module, bound in _BINDINGS.items() if bound is self),)

    def _follow(self) -> None:
        for part in self._recurrent:
            part._flat_weights = [part._parameters.get(name) for name in part._flat_weights_names]

    def state(self) -> Tree:
        """The module's own trained tensors: parameters, then buffers."""
        return {name: x.detach() for name, x in self._own.items() if x is not None}

    def check(self, tree: Tree) -> None:
        """Raise TreeError unless the tree has exactly this module's trained names."""
        if odd := sorted(tree.keys() ^ self._own.keys()):
            raise TreeError(f"the tree received is not this model's: only one side has {', '.join(odd[:3])}")


_BINDINGS: WeakKeyDictionary[nn.Module, Binding] = WeakKeyDictionary()


def binding(module: nn.Module) -> Binding:
    """The binding of a module: one, however many folds use it, so that each knows what the others bound."""
    if module not in _BINDINGS:
        _BINDINGS[module] = Binding(module)
    return _BINDINGS[module]


def _slots(module: nn.Module, kind: str, wanted: set[str]) -> dict[str, list[Slot]]:
    """Slots by the first name of each tensor in `wanted`; other names of the same tensor are further slots."""
    first: dict[int, str] = {}
    found: dict[str, list[Slot]] = {}
    for prefix, part in module.named_modules():
        holder = getattr(part, kind)
        for key, tensor in holder.items():
            if tensor is None:
                continue
            name = first.setdefault(id(tensor), f"{prefix}.{key}" if prefix else key)
            if name in wanted:
                found.setdefault(name, []).append((holder, key))
    return found
