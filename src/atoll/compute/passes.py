"""What is taken out of a recorded step and what is drawn together, so that less is left to do; exact up to rounding.

A pass changes the graph in place. `apart` and `clean` change no arithmetic; `fuse` draws an SGD step into the product that
makes the weight's gradient, W += -lr (A B) in one call, which reads and writes the weight once and the gradient never.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from atoll.compute.record import Recorded, item

aten = torch.ops.aten
_SAME = {aten.detach.default, aten.alias.default, aten.lift_fresh.default}
_SHAPED = {aten.view.default, aten._unsafe_view.default, aten.expand.default, aten.reshape.default}
_PERMUTED = {aten.t.default, aten.transpose.int, aten.permute.default}
_LIKE = {aten.ones_like.default, aten.zeros_like.default, aten.full_like.default, aten.empty_like.default}


def simplify(recorded: Recorded) -> None:
    """All passes, in the order in which they serve each other."""
    graph = recorded.graph
    apart(graph)
    clean(graph)
    fuse(graph)
    clean(graph)
    graph.lint()


def calls(graph: fx.Graph) -> Iterator[Any]:
    """The operations of a graph, in order."""
    return (node for node in list(graph.nodes) if node.op == "call_function")


def apart(graph: fx.Graph) -> None:
    """Operations on lists of tensors, one tensor at a time: vmap knows no rule for lists, and fusing looks at one."""
    for node in calls(graph):
        name, _, overload = str(node.target).removeprefix("aten.").partition(".")
        single = _single(name, overload) if name.startswith("_foreach_") else None
        if single is None:
            continue
        items = {user.args[1]: user for user in node.users}
        with graph.inserting_before(node):
            for i in range(len(node.args[0])):
                row = tuple(a[i] if isinstance(a, list | tuple) else a for a in node.args)
                kwargs = {key: a[i] if isinstance(a, list | tuple) else a for key, a in node.kwargs.items()}
                row, kwargs = _spelled(single, row, kwargs)
                one = graph.call_function(single, row, kwargs)
                one.meta.update(row[0].meta)
                one.meta["writes"] = frozenset({one.meta["storage"]}) if name.endswith("_") else frozenset()
                if i in items:
                    one.meta.update({k: items[i].meta[k] for k in ("shape", "dtype", "device", "storage")})
                    items[i].replace_all_uses_with(one)
                elif name.endswith("_"):
                    _rename_after(node, row[0], one)
        for user in items.values():
            graph.erase_node(user)
        graph.erase_node(node)


def _spelled(single: Any, row: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments that the operation on one tensor wants by name, by name."""
    named = [a.name for a in single._schema.arguments[: len(row)] if a.kwarg_only]
    places = len(row) - len(named)
    return row[:places], {**dict(zip(named, row[places:], strict=True)), **kwargs}


def _single(name: str, overload: str) -> Any:
    """The operation on one tensor that a list operation repeats."""
    plain = name.removeprefix("_foreach_")
    if plain == "norm":
        return aten.linalg_vector_norm.default
    packet = getattr(aten, plain, None)
    wanted = {"List": ("Tensor", "Scalar"), "ScalarList": ("Scalar",)}.get(overload, (overload, "default"))
    return next((getattr(packet, each) for each in (*wanted, "default") if packet and each in packet.overloads()), None)


def _rename_after(place: Any, old: Any, new: Any) -> None:
    """What reads a tensor after it was changed in place reads the change."""
    for user in list(old.users):
        if user is not new and user > place:
            user.replace_input_with(old, new)


def clean(graph: fx.Graph) -> None:
    """Drop copies of names, views that change nothing, transposes that undo each other, repeats, and what nobody reads."""
    for node in calls(graph):
        base = _unchanged(node)
        if base is not None:
            node.replace_all_uses_with(base)
            graph.erase_node(node)
        elif node.target in _PERMUTED and node.args[0].target in _PERMUTED:
            _compose(node)
    _repeats(graph)
    for node in reversed(list(calls(graph))):
        if not node.users and not node.meta["writes"]:
            graph.erase_node(node)


def _unchanged(node: Any) -> Any:
    """The node that this one only repeats."""
    base = node.args[0] if node.args else None
    if not isinstance(base, fx.Node) or "shape" not in base.meta:
        return None
    if node.target in _SAME or (node.target in _SHAPED and base.meta["shape"] == node.meta["shape"]):
        return base
    if node.target in _PERMUTED and _order(node) == tuple(range(len(base.meta["shape"]))):
        return base
    if node.target == aten.mul.Scalar and node.args[1] == 1 and base.meta["dtype"] == node.meta["dtype"]:
        return base if not _written_after(node, base) else None
    return None


def _written_after(node: Any, base: Any) -> bool:
    """Is the tensor changed while somebody still reads the node?"""
    last = max(node.users, default=node)
    return _changed_between(node, last, base)


def _repeats(graph: fx.Graph) -> None:
    """The same operation on the same tensors is done once, where nothing of it is changed in place."""
    written = frozenset[int]().union(*(node.meta["writes"] for node in graph.nodes))
    first: dict[Any, Any] = {}
    for node in calls(graph):
        touched = {n.meta.get("storage") for n in (node, *node.all_input_nodes)}
        if node.target is item or touched & written or torch.Tag.nondeterministic_seeded in node.target.tags:
            continue
        key = (node.target, repr(node.args), repr(node.kwargs))
        if key in first:
            node.replace_all_uses_with(first[key])
            graph.erase_node(node)
        else:
            first[key] = node


def _order(node: Any) -> tuple[int, ...]:
    """The permutation of axes that a transposing view is."""
    axes = list(range(len(node.meta["shape"])))
    if node.target == aten.permute.default:
        return tuple(axis % len(axes) for axis in node.args[1])
    if len(axes) > 1:
        a, b = (0, 1) if node.target == aten.t.default else (node.args[1], node.args[2])
        axes[a], axes[b] = axes[b], axes[a]
    return tuple(axes)


def _compose(node: Any) -> None:
    """A transpose of a transpose as one, or none."""
    inner: Any = node.args[0]
    first, then = _order(inner), _order(node)
    together, base = [first[axis] for axis in then], inner.args[0]
    if together == sorted(together):
        node.replace_all_uses_with(base)
        node.graph.erase_node(node)
        return
    node.target = aten.permute.default
    node.args = (base, together)


def fuse(graph: fx.Graph) -> None:
    """bias + A @ B in one call where clients are batched, and the optimiser's step in the product of the gradient."""
    for node in calls(graph):
        if node.target == aten.add.Tensor and not node.kwargs and all(isinstance(a, fx.Node) for a in node.args):
            _fuse_bias(graph, node)
    _fuse_bias_step(graph)
    _fuse_step(graph)


def _fuse_bias(graph: fx.Graph, node: Any) -> None:
    """bias + A @ B as baddbmm: vmap takes a linear layer apart."""
    for bias, product in (node.args, node.args[::-1]):
        if product.target != aten.bmm.default or len(product.users) != 1 or bias.meta["dtype"] != node.meta["dtype"]:
            continue
        if product.meta["shape"] != node.meta["shape"] or len(bias.meta["shape"]) != 3:
            continue
        with graph.inserting_before(node):
            fused = graph.call_function(aten.baddbmm.default, (bias, *product.args))
        fused.meta.update(node.meta)
        node.replace_all_uses_with(fused)
        graph.erase_node(node)
        graph.erase_node(product)
        return


def _fuse_bias_step(graph: fx.Graph) -> None:
    """b.add_(G.sum(0), alpha=a) as b.addmv_(G^T, 1, alpha=a): the step of a bias without its gradient."""
    for node in calls(graph):
        if node.target != aten.add_.Tensor or not isinstance(node.args[1], fx.Node) or len(node.args[0].meta["shape"]) != 1:
            continue
        target, total = node.args
        while total.target in _SHAPED and len(total.users) == 1:
            total = total.args[0]
        if total.target != aten.sum.dim_IntList or len(total.users) != 1 or list(total.args[1]) != [0]:
            continue
        summed = total.args[0]
        shape, dtype = summed.meta["shape"], summed.meta["dtype"]
        if len(shape) != 2 or shape[1:] != target.meta["shape"] or dtype != target.meta["dtype"]:
            continue
        if _changed_between(total, node, summed):
            continue
        with graph.inserting_before(node):
            ones = graph.call_function(aten.new_ones.default, (target, [shape[0]]))
            ones.meta.update(target.meta, shape=(shape[0],), storage=-id(ones), writes=frozenset())
            turned = _turned(graph, summed)
            fused = graph.call_function(aten.addmv_.default, (target, turned, ones), {"alpha": node.kwargs.get("alpha", 1)})
        fused.meta.update(node.meta)
        node.replace_all_uses_with(fused)
        graph.erase_node(node)


def _fuse_step(graph: fx.Graph) -> None:
    """P.add_(A @ B, alpha=a) as P.addmm_(A, B, alpha=a), for one client or a batch of them; P.mul_(m) before it as beta."""
    for node in calls(graph):
        if node.target != aten.add_.Tensor or not isinstance(node.args[1], fx.Node):
            continue
        target: Any = node.args[0]
        gradient: Any = node.args[1]
        turned = False
        if gradient.target in _PERMUTED and _swaps_last(gradient) and len(gradient.users) == 1:
            gradient, turned = gradient.args[0], True
        product = {aten.mm.default: aten.addmm_.default, aten.bmm.default: aten.baddbmm_.default}.get(gradient.target)
        if product is None or len(gradient.users) != 1 or target.meta["shape"] != node.args[1].meta["shape"]:
            continue
        a, b = gradient.args
        if target.meta["dtype"] != gradient.meta["dtype"] or _changed_between(gradient, node, a, b):
            continue
        with graph.inserting_before(node):
            if turned:
                a, b = _turned(graph, b), _turned(graph, a)
            beta, before = 1, target
            if target.target == aten.mul_.Tensor and not isinstance(target.args[1], fx.Node) and len(target.users) == 1:
                beta, before = target.args[1], target.args[0]
            fused = graph.call_function(product, (before, a, b), {"beta": beta, "alpha": node.kwargs.get("alpha", 1)})
        fused.meta.update(node.meta)
        node.replace_all_uses_with(fused)
        for dead in (node, node.args[1], gradient, target if before is not target else None):
            if dead is not None and not dead.users and dead in graph.nodes:
                graph.erase_node(dead)


def _changed_between(start: Any, end: Any, *read: Any) -> bool:
    """Is one of the tensors changed on the way, or by the end itself?"""
    storages, node = {x.meta["storage"] for x in read}, start
    while node < end:
        node = node.next
        if node.meta["writes"] & storages:
            return True
    return False


def _swaps_last(node: Any) -> bool:
    order = _order(node)
    n = len(order)
    return n >= 2 and order == (*range(n - 2), n - 1, n - 2)


def _turned(graph: fx.Graph, node: Any) -> fx.Node:
    shape = node.meta["shape"]
    turn, axes = (aten.t.default, ()) if len(shape) == 2 else (aten.transpose.int, (-2, -1))
    turned = graph.call_function(turn, (node, *axes))
    turned.meta.update(node.meta, shape=(*shape[:-2], shape[-1], shape[-2]), writes=frozenset())
    return turned
