"""The mean and the sum obey the laws of aggregators, in the memory of one model."""

from __future__ import annotations

import resource
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from atoll import tree
from atoll.aggregators.mean import mean, total
from atoll.algorithms.fedasync import mixing
from atoll.errors import ConfigError
from atoll.policy import polynomial
from atoll.testing.aggregator import check_aggregator, updates
from atoll.types import Aggregator, ClientId, Update


@pytest.mark.parametrize("make", [mean, lambda: mean("uniform"), total])
def test_they_obey_the_laws(make: Callable[[], Aggregator[Any]]) -> None:
    check_aggregator(make())
    check_aggregator(make(), lambda: [u._replace(tree=tree.pack(dict(list(u.tree.items())[:3]))) for u in updates()])


def test_fedasyncs_mix_obeys_the_laws() -> None:
    w = {name: torch.ones(x.shape) for name, x in updates(1)[0].tree.items()}
    check_aggregator(mixing(w, 0.6, polynomial()), stale=False)


def test_a_mix_is_computed_in_the_models_precision() -> None:
    """A model sent in half precision is subtracted from the whole one, not both in half."""
    w = {"w": torch.tensor([1.0009766])}
    update = Update(0, ClientId("a"), "train", {"w": torch.tensor([1.0], dtype=torch.bfloat16)}, 1.0, {})
    reduce = mixing(w, 1.0, lambda age: 1.0)
    step = reduce.finish(reduce.add(reduce.init(), update))["w"]
    assert step.dtype == torch.float32
    assert float(step) == pytest.approx(-0.0009766, rel=1e-3)


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.tuples(st.floats(-10, 10, width=32), st.integers(1, 1000)), min_size=1, max_size=20))
def test_a_mean_is_the_mean(rows: list[tuple[float, int]]) -> None:
    for kind in ("examples", "uniform"):
        reduce = mean(kind)  # type: ignore[arg-type]
        acc = reduce.init()
        for i, (value, weight) in enumerate(rows):
            acc = reduce.add(acc, Update(0, ClientId(str(i)), "train", {"w": torch.tensor([value])}, float(weight), {}))
        shares = [w if kind == "examples" else 1 for _, w in rows]
        want = sum(v * s for (v, _), s in zip(rows, shares, strict=True)) / sum(shares)
        assert float(reduce.finish(acc)["w"]) == pytest.approx(want, rel=1e-4, abs=1e-4)


def test_half_precision_is_summed_in_full() -> None:
    reduce = mean("uniform")
    acc = reduce.init()
    for i in range(1000):  # 256 + 1 is 256 in bfloat16: a sum in it would stand still
        acc = reduce.add(acc, Update(0, ClientId(str(i)), "train", {"w": torch.ones(1, dtype=torch.bfloat16)}, 1.0, {}))
    got = reduce.finish(acc)["w"]
    assert got.dtype == torch.float32
    assert float(got) == 1.0
    wide = reduce.add(reduce.init(), Update(0, ClientId("a"), "train", {"w": torch.ones(1, dtype=torch.float64)}, 1.0, {}))
    assert reduce.finish(wide)["w"].dtype == torch.float64


def test_nobody_gives_nothing() -> None:
    assert mean().finish(mean().init()) == {}
    assert total().finish(total().init()) == {}
    with pytest.raises(ConfigError):
        mean("median")  # type: ignore[arg-type]


class Peak(TorchDispatchMode):
    """The most bytes that tensors made under it hold at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                place = storage.data_ptr()
                if place not in self.live:
                    self.live[place] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, place, None)
                    self.peak = max(self.peak, sum(self.live.values()))
        return out


def test_two_hundred_updates_take_the_memory_of_one_model() -> None:
    size = 4 << 20
    reduce = mean()
    acc = reduce.init()
    peaks = []
    for i in range(200):
        update = Update(0, ClientId(str(i)), "train", tree.pack({"w": torch.full((size // 4,), 1.0)}), 2.0, {})
        acc = reduce.add(acc, update)
        if i in (5, 199):
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    assert float(reduce.finish(acc)["w"][0]) == 1.0
    assert peaks[1] - peaks[0] < 3 * size, "memory grows with the number of updates"


def test_adding_makes_no_tensor_of_the_models_size() -> None:
    size = 1 << 20
    update = Update(0, ClientId("a"), "train", tree.pack({"w": torch.ones(size // 4)}), 2.0, {})
    reduce = mean()
    acc = reduce.add(reduce.init(), update)
    with Peak() as peak:
        for _ in range(5):
            acc = reduce.add(acc, update)
    assert peak.peak - size <= size // 2, "the accumulator itself, and nothing beside it"


class Breaks:
    """Aggregators that break one law each."""

    @staticmethod
    def keeps() -> Aggregator[Any]:
        """Holds on to the first update's own tensors."""
        m = mean()

        def add(acc: Any, u: Update) -> Any:
            return [*acc, u]

        def finish(acc: Any) -> Any:
            inner = m.init()
            for u in acc:
                inner = m.add(inner, u)
            return m.finish(inner)

        return Aggregator(list, add, lambda a, b: [*a, *b], finish, only_sum=False)

    @staticmethod
    def last() -> Aggregator[Any]:
        return Aggregator(dict, lambda acc, u: {n: x.clone() for n, x in u.tree.items()}, lambda a, b: b or a, dict, False)

    @staticmethod
    def writes() -> Aggregator[Any]:
        m = total()
        return m._replace(add=lambda acc, u: m.add(acc, u._replace(tree={n: x.mul_(2) for n, x in u.tree.items()})))

    @staticmethod
    def mean_of_means() -> Aggregator[Any]:
        m = mean()
        return m._replace(merge=lambda a, b: m.merge(a, b)._replace(weight=max(a.weight, b.weight)))


@pytest.mark.parametrize("broken", [Breaks.keeps, Breaks.last, Breaks.writes, Breaks.mean_of_means])
def test_an_aggregator_that_breaks_a_law_is_found(broken: Callable[[], Aggregator[Any]]) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        check_aggregator(broken())
