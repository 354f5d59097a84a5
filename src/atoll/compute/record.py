"""A piece of work recorded as a graph: the aten operations that it did, without the Python around them.

The recorder sits below autograd and below vmap, so that it sees the backward pass as plain operations, and batched ones
where vmap batches. It runs the work for real on real tensors: recording costs one step. (`make_fx` records too, but imports
a symbolic-algebra package, 1.6 s before the first round.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from atoll.errors import AtollError


class UntraceableError(AtollError):
    """The work can't be a graph, and why."""


class Recorded(NamedTuple):
    """A graph whose placeholders are the inputs, then the constants; it has no outputs, its work is done in place.

    Of each node `meta` says: "shape", "dtype" and "device" of its value, "storage" (numbers that tensors sharing memory share),
    "writes" (the numbers of what it changes in place).
    """

    graph: fx.Graph
    inputs: int  # so many placeholders are inputs
    constants: list[Tensor]  # the values of the others
    random: bool  # it draws: dropout


def record(run: Callable[[], object], inputs: Sequence[Tensor]) -> Recorded:
    """Do `run` and record what it did to `inputs`, which it reads and changes in place.

    Raises:
        UntraceableError: its Python reads values that its inputs decide.

    >>> x, one = torch.zeros(2), torch.ones(2)
    >>> seen = record(lambda: x.add_(one), [x])
    >>> x.tolist(), [str(n.target) for n in seen.graph.nodes if n.op == "call_function"]
    ([1.0, 1.0], ['aten.add_.Tensor'])
    """
    recorder = Recorder(inputs)
    with recorder:
        run()
    return Recorded(recorder.graph, len(inputs), recorder.constants, recorder.random)


def replayed(graph: fx.Graph, instead: Mapping[Any, Callable[..., Any]] = {}) -> Callable[..., tuple[()]]:
    """A recorded graph as a function of its placeholders' values, operation by operation; some are done by others `instead`.

    >>> x, one = torch.zeros(2), torch.ones(2)
    >>> _ = replayed(record(lambda: x.add_(one), [x]).graph)(x, one)
    >>> x.tolist()
    [2.0, 2.0]
    """

    last = {read: node for node in graph.nodes for read in node.all_input_nodes}  # after it nobody reads that value

    def run(*values: Tensor) -> tuple[()]:
        known: dict[fx.Node, Any] = {}
        given = iter(values)
        for node in graph.nodes:
            if node.op == "placeholder":
                known[node] = next(given)
            elif node.op == "call_function":
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
                known[node] = instead.get(node.target, node.target)(*args, **kwargs)
                for read in node.all_input_nodes:
                    if last[read] is node:
                        del known[read]
        return ()

    return run


def written(recorded: Recorded, count: int) -> list[bool]:
    """Which of the first `count` inputs the work changes."""
    changed = frozenset[int]().union(*(node.meta["writes"] for node in recorded.graph.nodes))
    inputs = [node for node in recorded.graph.nodes if node.op == "placeholder"][:count]
    return [node.meta["storage"] in changed for node in inputs]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what passes."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph, self.constants, self.random = fx.Graph(), list[Tensor](), False
        self._nodes = WeakTensorKeyDictionary()  # a recording holds no activation longer than the step itself does
        self._storages: dict[int, tuple[int, StorageWeakRef]] = {}  # an address stays taken while a weak reference is held
        for i, x in enumerate(inputs):
            self._told(self.graph.placeholder(f"x{i}"), x)
        # What differs from step to step: an input, and whatever it reached.
        self._varying = {number for number, _ in self._storages.values()}
        self._body = self.graph.call_function(torch.empty)  # where the body begins; erased at the end

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to hide from a compiler that is not there would import it: seconds

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        self.graph.erase_node(self._body)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: Any = fx.node.map_aggregate((args, kwargs or {}), self._known)
        varies = any(self._storage(x) in self._varying for x in _tensors((args, kwargs)))
        if varies and {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags):
            raise UntraceableError(f"it reads the values of a tensor ({func.name().removeprefix('aten::')})")
        if torch.Tag.nondeterministic_seeded in func.tags and not _without_dropout(func, args, kwargs or {}):
            self.random = varies = True
        writes = [self._storage(x) for x in _written(func, args, kwargs or {})]
        out = func(*args, **(kwargs or {}))
        if varies:
            self._varying.update(writes, (self._storage(x) for x in _tensors(out)))
        node = self.graph.call_function(func, *given)
        node.meta["writes"] = frozenset(writes)
        if isinstance(out, Tensor):
            self._told(node, out)
        elif isinstance(out, tuple | list):
            for i, x in enumerate(out):
                if isinstance(x, Tensor):
                    self._told(self.graph.call_function(item, (node, i)), x)
        return out

    def _known(self, x: Any) -> Any:
        """The node of a tensor; one that nobody has seen yet is a constant, such as a frozen weight."""
        if not isinstance(x, Tensor):
            return x
        if x not in self._nodes:
            with self.graph.inserting_before(self._body):
                self._told(self.graph.placeholder(f"c{len(self.constants)}"), x)
            self.constants.append(x.detach())
        return self._nodes[x]

    def _told(self, node: fx.Node, x: Tensor) -> None:
        self._nodes[x] = node
        node.meta.update(shape=tuple(x.shape), dtype=x.dtype, device=x.device, storage=self._storage(x))
        node.meta.setdefault("writes", frozenset())

    def _storage(self, x: Tensor) -> int:
        storage = x.untyped_storage()
        if storage._cdata not in self._storages:
            weak: Any = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            self._storages[storage._cdata] = (len(self._storages), weak)
        return self._storages[storage._cdata][0]


def item(values: Sequence[Any], i: int) -> Any:
    """One of the results of an operation that has several."""
    return values[i]


def _without_dropout(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Attention counts as random for a dropout that is mostly 0."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            default = kwargs.get("dropout_p", argument.default_value)
            return bool((args[i] if i < len(args) else default) == 0)
    return False


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in _pytree.tree_leaves(values) if isinstance(x, Tensor)]


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation changes in place."""
    if not func._schema.is_mutable:
        return []
    found: list[Tensor] = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [x for x in (value if isinstance(value, list | tuple) else [value]) if isinstance(x, Tensor)]
    return found
