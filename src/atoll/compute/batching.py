"""The step of one client as that of many: what vmap needs to be told that it does not know by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from atoll.compute.passes import aten, calls
from atoll.compute.record import replayed

_NONE, _MEAN = 0, 1  # of a loss over examples: how they are reduced


def batched(graph: fx.Graph, shared: int) -> Any:
    """The graph as a function over one more first axis of every placeholder but the last `shared`, which stay as they are.

    >>> from atoll.compute.record import record
    >>> w, x, base = torch.zeros(2), torch.ones(2), torch.full((2,), 3.0)
    >>> seen = record(lambda: w.add_(x * base), [w, x])
    >>> together = torch.zeros(4, 2)
    >>> _ = batched(seen.graph, shared=1)(together, torch.arange(8.0).view(4, 2), base)
    >>> together[3].tolist()
    [18.0, 21.0]
    """
    count = sum(node.op == "placeholder" for node in graph.nodes)
    over = (*(0 for _ in range(count - shared)), *(None for _ in range(shared)))
    return torch.func.vmap(replayed(_strided(graph), _FOLDED), in_dims=over)


def _strided(graph: fx.Graph) -> fx.Graph:
    """A copy whose views may copy: with one more axis, a tensor's strides may no longer allow to look at it as asked."""
    copy = fx.Graph()
    copy.graph_copy(graph, {})
    written = frozenset[int]().union(*(node.meta["writes"] for node in copy.nodes))
    for node in calls(copy):
        if node.target == aten.view.default and node.meta["storage"] not in written:
            node.target = aten.reshape.default
    return copy


def _axes_first(values: tuple[Any, ...], in_dims: tuple[int | None, ...], count: int) -> list[Any]:
    """Tensors (count, n, ...) as (count * n, ...): an operation that has a batch axis takes clients into it."""
    found = []
    for x, axis in zip(values, in_dims, strict=True):
        if not isinstance(x, Tensor):
            found.append(x)
            continue
        x = x.movedim(axis, 0) if axis is not None else x.expand(count, *x.shape)
        found.append(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]))
    return found


class _Attention(torch.autograd.Function):
    """Attention's own kernel, forward: clients are rows of its batch."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Any:
        attend = aten._scaled_dot_product_flash_attention_for_cpu.default
        return attend(query, key, value, 0.0, causal, attn_mask=mask, scale=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: Any, *given: Any) -> Any:
        query, key, value, mask, causal, scale = given
        n = next(x.movedim(axis, 0).shape[1] for x, axis in zip(given, in_dims, strict=True) if axis is not None)
        rows = _axes_first((query, key, value), in_dims[:3], info.batch_size)
        mask = _mask(mask, in_dims[3], info.batch_size, n)
        query, key, value = rows
        out = _Attention.forward(query, key, value, mask, causal, scale)
        return tuple(x.unflatten(0, (info.batch_size, -1)) for x in out), (0, 0)


class _AttentionBackward(torch.autograd.Function):
    """Attention's own kernel, backward."""

    @staticmethod
    def forward(grad: Tensor, *rest: Any) -> Any:
        *tensors, mask, causal, scale = rest
        backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
        return backward(grad, *tensors, 0.0, causal, attn_mask=mask, scale=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: Any, *given: Any) -> Any:
        *_, mask, causal, scale = given
        n = next(x.movedim(axis, 0).shape[1] for x, axis in zip(given, in_dims, strict=True) if axis is not None)
        rows = _axes_first(given[:6], in_dims[:6], info.batch_size)
        out = _AttentionBackward.forward(*rows, _mask(mask, in_dims[6], info.batch_size, n), causal, scale)
        return tuple(x.unflatten(0, (info.batch_size, -1)) for x in out), (0, 0, 0)


def _mask(mask: Tensor | None, axis: int | None, count: int, n: int) -> Tensor | None:
    """(n, heads, queries, keys), or fewer axes that broadcast, for all clients' rows."""
    if mask is None or (axis is None and (mask.dim() < 4 or mask.shape[0] == 1)):
        return mask
    each = mask.movedim(axis, 0) if axis is not None else mask.expand(count, *mask.shape)
    each = each if each.dim() == 5 else each[:, None]
    return each.expand(count, n, *each.shape[2:]).flatten(0, 1)


def _forward(*args: Any, **kwargs: Any) -> Any:
    query, key, value, _, causal = (*args, 0.0, False)[:5]
    apply: Any = _Attention.apply
    return apply(query, key, value, kwargs.get("attn_mask"), causal, kwargs.get("scale"))


def _backward(*args: Any, **kwargs: Any) -> Any:
    *tensors, _, causal = args
    apply: Any = _AttentionBackward.apply
    return apply(*tensors, kwargs.get("attn_mask"), causal, kwargs.get("scale"))


class _Rows(torch.autograd.Function):
    """An operation on the rows of tensors, whoever's they are."""

    @staticmethod
    def forward(run: Any, *tensors: Tensor) -> Tensor:
        result: Tensor = run(*tensors)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: Any, run: Any, *tensors: Tensor) -> Any:
        return run(*_axes_first(tensors, in_dims[1:], info.batch_size)).unflatten(0, (info.batch_size, -1)), 0


def _nll(x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore: int) -> Any:
    """By its own kernel: in other words it is five passes over the logits, and imports a symbolic-algebra package to say them."""
    whole = aten.nll_loss_forward.default
    if weight is not None or x.dim() != 2:
        return whole(x, target, weight, reduction, ignore)
    apply: Any = _Rows.apply
    each = apply(lambda x, target: whole(x, target, None, _NONE, ignore)[0], x, target)
    if reduction == _NONE:
        return each, x.new_zeros(())
    total = (target != ignore).sum().to(x.dtype)
    return (each.sum() / total if reduction == _MEAN else each.sum()), total


def _nll_backward(
    grad: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore: int, total: Tensor
) -> Any:
    whole = aten.nll_loss_backward.default
    if weight is not None or x.dim() != 2:
        return whole(grad, x, target, weight, reduction, ignore, total)
    if reduction == _MEAN:
        grad = grad / total
    apply: Any = _Rows.apply
    return apply(lambda *rows: whole(*rows, None, _NONE, ignore, rows[0].new_ones(())), grad.expand(target.shape), x, target)


def _addcmul_(x: Tensor, a: Tensor, b: Tensor, value: float = 1.0) -> Tensor:
    return x.add_(a * b, alpha=value)


def _lerp_(x: Tensor, end: Tensor, weight: float) -> Tensor:
    return x.add_(end - x, alpha=weight)


# Operations for which vmap has no rule and would take clients one by one, in other words.
_FOLDED: dict[Any, Any] = {
    aten.addcmul_.default: _addcmul_,
    aten.lerp_.Scalar: _lerp_,
    aten.nll_loss_forward.default: _nll,
    aten.nll_loss_backward.default: _nll_backward,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _forward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _backward,
}
