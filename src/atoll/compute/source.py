"""A graph as straight-line Python: what depends on constants alone is computed once, views of a client's tensors once a
client, and the rest line by line under inference_mode, calling PyTorch's own bindings (a third of the cost of torch.ops).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from atoll.compute.passes import calls
from atoll.compute.record import Recorded

# Bindings that take the same arguments, in the same order, as the aten operation of the name.
_FUNCTIONS = (
    "mm addmm bmm baddbmm relu _log_softmax _log_softmax_backward_data _softmax _softmax_backward_data convolution "
    "native_layer_norm t transpose permute sum mul add sub div rsqrt mean cos sin neg sqrt exp unsqueeze where cat "
    "sigmoid tanh embedding clone"
)
_METHODS = "add_ mul_ sub_ div_ addmm_ addmv_ baddbmm_ lerp_ addcmul_ copy_ view expand select"
_DIRECT = {name: getattr(torch, name) for name in _FUNCTIONS.split()}
_DIRECT |= {name: getattr(torch.Tensor, name) for name in _METHODS.split()}
_KEYWORDED = {"sum.dim_IntList": ("dim", "keepdim"), "mean.dim": ("dim", "keepdim")}  # where the binding is picky

Tensors = Sequence[Tensor]


class Source(NamedTuple):
    """A program of three parts: `once(constants)`, `bind(state, once)`, `step(state, batch, constants, once, bound)`."""

    once: Callable[..., tuple[Any, ...]]
    bind: Callable[..., tuple[Any, ...]]
    step: Callable[..., None]
    text: str


def compile_source(recorded: Recorded, state: int) -> Source:
    """The functions of a recorded step, of whose inputs the first `state` stay the same from step to step.

    >>> from atoll.compute.record import record
    >>> w, x = torch.zeros(2), torch.ones(2)
    >>> source = compile_source(record(lambda: w.add_(x), [w, x]), 1)
    >>> source.step([w], [x], [], source.once([]), source.bind([w], [], source.once([])))
    >>> w.tolist()
    [2.0, 2.0]
    """
    names, parts = _named(recorded, state), _parted(recorded, state)
    namespace: dict[str, Any] = {"torch": torch}
    lines: list[str] = []
    once, bound = [names[n] for n in parts["once"]], [names[n] for n in parts["bind"]]
    inputs = [names[n] for n in recorded.graph.nodes if n.op == "placeholder"]
    held = {"state": inputs[:state], "batch": inputs[state : recorded.inputs], "constants": inputs[recorded.inputs :]}
    for part, takes, gives in (
        ("once", {"constants": held["constants"]}, once),
        ("bind", {"state": held["state"], "constants": held["constants"], "once_": once}, bound),
        ("step", {**held, "once_": once, "bound": bound}, None),
    ):
        lines.append(f"def {part}({', '.join(takes)}):")
        used = {names[n] for node in parts[part] for n in node.all_input_nodes}
        for name, values in takes.items():
            if any(v in used for v in values):
                lines.append(f"    {', '.join(v if v in used else '_' for v in values)}, = {name}")
        dying = _last_read(parts[part], keep=set(gives or ()), names=names)
        for node in parts[part]:
            lines.append(f"    {_line(node, names, namespace)}")
            if gone := dying.get(node):
                lines.append(f"    del {', '.join(gone)}")
        lines.append(f"    return ({''.join(f'{g}, ' for g in gives)})" if gives is not None else "    return None")
    text = "\n".join(lines)
    exec(compile(text, "<captured step>", "exec"), namespace)  # our own text, of a graph that was recorded here
    return Source(namespace["once"], namespace["bind"], namespace["step"], text)


def _last_read(part: Sequence[fx.Node], keep: set[str], names: dict[fx.Node, str]) -> dict[fx.Node, list[str]]:
    """After which line nobody reads a value of this part any more: an activation should not outlive its use."""
    last = {node: node for node in part if names[node] not in keep}
    for node in part:
        last.update((read, node) for read in node.all_input_nodes if read in last)
    gone: dict[fx.Node, list[str]] = {}
    for value, node in last.items():
        gone.setdefault(node, []).append(names[value])
    return gone


def _named(recorded: Recorded, state: int) -> dict[fx.Node, str]:
    return {node: node.name if node.op == "placeholder" else f"v{i}" for i, node in enumerate(recorded.graph.nodes)}


def _parted(recorded: Recorded, state: int) -> dict[str, list[fx.Node]]:
    """Which part computes a node: as early as its inputs and what is written allow."""
    graph = recorded.graph
    written = frozenset[int]().union(*(node.meta["writes"] for node in graph.nodes))
    rank = {"once": 0, "bind": 1, "step": 2}
    where: dict[fx.Node, str] = {}
    for i, node in enumerate(n for n in graph.nodes if n.op == "placeholder"):
        where[node] = "bind" if i < state else "step" if i < recorded.inputs else "once"
    parts: dict[str, list[fx.Node]] = {part: [] for part in rank}
    for node in calls(graph):
        part = max((where[n] for n in _reads(node)), key=rank.__getitem__, default="once")
        if not _may_move(node, part, written):
            part = "step"
        where[node] = part
        parts[part].append(node)
    return parts


def _reads(node: Any) -> list[fx.Node]:
    """The nodes whose values matter: `ones_like` and its kind only look at a shape, which is known."""
    return [] if _like(node) else list(node.all_input_nodes)


def _like(node: Any) -> bool:
    return str(node.target).removeprefix("aten.").partition(".")[0] in ("ones_like", "zeros_like", "full_like", "new_ones")


def _may_move(node: Any, part: str, written: frozenset[int]) -> bool:
    """A view may move up with what it views; a computed value may where nothing of it is ever changed."""
    operation = node.target
    if isinstance(operation, torch._ops.OpOverload):
        if torch.Tag.nondeterministic_seeded in operation.tags or node.meta["writes"]:
            return False
        if operation.is_view:
            return True
    if part != "once" or "storage" not in node.meta:
        return False
    return node.meta["storage"] not in written and not any(n.meta.get("storage") in written for n in _reads(node))


def _line(node: Any, names: dict[fx.Node, str], namespace: dict[str, Any]) -> str:
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):  # an element of a list
        return f"{names[node]} = {names[node.args[0]]}[{node.args[1]}]"
    full = str(target).removeprefix("aten.")
    name, _, overload = full.partition(".")
    args, kwargs = list(node.args), dict(node.kwargs)
    if _like(node):
        value = {"ones_like": 1, "zeros_like": 0, "new_ones": 1}.get(name, args[1] if len(args) > 1 else 0)
        said = f"dtype={node.meta['dtype']}, device='{node.meta['device']}'"
        return f"{names[node]} = torch.full({node.meta['shape']!r}, {value!r}, {said})"
    call = _DIRECT.get(name) if overload != "out" else None
    if full in _KEYWORDED:
        args, kwargs = args[:1], {**dict(zip(_KEYWORDED[full], args[1:], strict=False)), **kwargs}
    key = f"op_{name}" if call else f"op_{name}_{overload}"
    namespace.setdefault(key, call or target)
    if name == "view":
        args = [args[0], *args[1]]  # sizes one by one are parsed faster than a list
    spelled = [_spelled(a, names, namespace) for a in args]
    spelled += [f"{k}={_spelled(v, names, namespace)}" for k, v in kwargs.items()]
    return f"{names[node]} = {key}({', '.join(spelled)})"


def _spelled(value: Any, names: dict[fx.Node, str], namespace: dict[str, Any]) -> str:
    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(_spelled(v, names, namespace) for v in value)}]"
    if value is None or isinstance(value, bool | int | str):
        return repr(value)
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        return repr(value)
    key = f"k{len(namespace)}"  # a dtype, a device, a memory format, inf
    namespace[key] = value
    return key
