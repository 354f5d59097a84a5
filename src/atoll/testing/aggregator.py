"""Laws of an aggregator: a commutative monoid up to rounding, that never touches or keeps an update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from atoll import tree
from atoll.types import Aggregator, ClientId, Tree, Update


def updates(count: int = 5) -> list[Update]:
    """Updates as clients send them: a matrix, a 0-d tensor, an empty one, a half-precision one; unequal weights.

    >>> [u.weight for u in updates(2)]
    [1.0, 2.0]
    """
    found = []
    for k in range(count):
        draw = torch.Generator().manual_seed(k)
        sent = {
            "w": torch.randn(3, 4, generator=draw),
            "b": torch.randn((), generator=draw),
            "empty": torch.zeros(0, 2),
            "half": torch.randn(5, generator=draw).bfloat16(),
        }
        found.append(Update(0, ClientId(f"c{k}"), "train", sent, float(k + 1), {}))
    return found


def check_aggregator(
    aggregator: Aggregator[Any],
    sample: Callable[[], Sequence[Update]] = updates,
    tolerance: float = 1e-5,
    stale: bool = True,
) -> None:
    """Raise AssertionError where a law does not hold.

    `sample` makes the updates, anew at each call: for a rule whose updates have a form of their own. `tolerance` is
    relative, for sums in another order. `stale=False` is for a rule that weighs late updates by their age itself
    (`Request.discount` is then False).

    >>> from atoll.aggregators.mean import mean
    >>> check_aggregator(mean())
    """
    given = list(sample())
    whole = _folded(aggregator, given)
    _check_update_is_not_touched(aggregator, sample)
    _close(_folded(aggregator, given), whole, 0.0, "the same updates in the same order give other bits")
    _close(_folded(aggregator, given[::-1]), whole, tolerance, "the order of the updates matters")
    for cut in range(len(given) + 1):
        _close(_merged(aggregator, [given[:cut], given[cut:]]), whole, tolerance, f"merging at {cut} is not streaming")
        _close(_merged(aggregator, [given[cut:], given[:cut]]), whole, tolerance, "merge does not commute")
    _close(_merged(aggregator, [[u] for u in given]), whole, tolerance, "merging one by one from the left is not streaming")
    _close(_right(aggregator, given), whole, tolerance, "merge is not associative")
    if stale:
        late = [u._replace(factor=1.0 / (k + 2)) for k, u in enumerate(given)]
        scaled = [u._replace(factor=1.0, tree=tree.scale(u.tree, u.factor)) for u in late]
        loose = max(tolerance, 1e-2)  # scaling beforehand rounds a half-precision tensor, folding does not
        _close(_folded(aggregator, late), _folded(aggregator, scaled), loose, "Update.factor does not scale the update")


def _folded(aggregator: Aggregator[Any], given: Sequence[Update]) -> Tree:
    acc = aggregator.init()
    for update in given:
        acc = aggregator.add(acc, update)
    return _copy(aggregator.finish(acc))


def _shard(aggregator: Aggregator[Any], given: Sequence[Update]) -> Any:
    acc = aggregator.init()
    for update in given:
        acc = aggregator.add(acc, update)
    return acc


def _merged(aggregator: Aggregator[Any], shards: Sequence[Sequence[Update]]) -> Tree:
    acc = aggregator.init()
    for shard in shards:
        acc = aggregator.merge(acc, _shard(aggregator, shard))
    return _copy(aggregator.finish(acc))


def _right(aggregator: Aggregator[Any], given: Sequence[Update]) -> Tree:
    acc = aggregator.init()
    for update in reversed(given):
        acc = aggregator.merge(_shard(aggregator, [update]), acc)
    return _copy(aggregator.finish(acc))


def _check_update_is_not_touched(aggregator: Aggregator[Any], sample: Callable[[], Sequence[Update]]) -> None:
    """Adding reads an update and nothing more; once it is acknowledged its buffers are another's."""
    whole = _folded(aggregator, list(sample()))
    acc = aggregator.init()
    for update, same in zip(sample(), sample(), strict=True):
        acc = aggregator.add(acc, update)
        for name, x in update.tree.items():
            assert torch.equal(x, same.tree[name]), f"add wrote to the update's {name!r}"
            if x.is_floating_point():
                x.fill_(float("nan"))
    _close(_copy(aggregator.finish(acc)), whole, 0.0, "the accumulator keeps an update's buffers: copy them")


def _copy(values: Tree) -> Tree:
    return {name: x.detach().clone() for name, x in values.items()}


def _close(a: Tree, b: Tree, tolerance: float, what: str) -> None:
    tree.agree(a, b)
    for name, x in a.items():
        torch.testing.assert_close(x, b[name], rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m: f"{what}: {m}")
