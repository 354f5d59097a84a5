"""The largest entries are kept, as many as promised, and nothing else is said of the others."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atoll import tree
from atoll.errors import ConfigError, TreeError
from atoll.testing.transform import check_transform
from atoll.transforms.chain import chain
from atoll.transforms.compress.chunk_top_k import chosen, chunk_top_k
from atoll.transforms.compress.int8 import int8
from atoll.transforms.compress.top_k import top_k
from atoll.types import Assignment, ClientId, Transform, Tree, Update


def sent(transform: Transform[Any], values: Tree, seed: int = 0) -> Update:
    start = Assignment(0, ClientId("a"), "train", {}, seed)
    return transform.encode(start, {}, {}, Update(0, ClientId("a"), "train", values, 1.0, {}))[0]


def through(transform: Transform[Any], values: Tree) -> Tree:
    assert transform.decode is not None
    return transform.decode(sent(transform, values), values).tree


@pytest.mark.parametrize(
    "transform", [top_k(0.3), top_k(0.3, "exact"), chunk_top_k(8, 2), chain("both", [top_k(0.5), int8()])], ids=lambda t: t.name
)
def test_they_obey_the_laws(transform: Transform[Any]) -> None:
    check_transform(transform)


def test_what_is_kept_whole_is_kept() -> None:
    check_transform(top_k(1.0), error=1e-7)
    check_transform(chunk_top_k(4, 4), error=1e-7)


floats = st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from([0.0, -0.0, 1e-45, 3e38]))


@settings(deadline=None, max_examples=100)
@given(values=st.lists(floats, min_size=1, max_size=80), fraction=st.floats(0.01, 1.0))
def test_exactly_the_largest_are_kept(values: list[float], fraction: float) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    out, k = through(top_k(fraction, "exact"), {"x": x})["x"], math.ceil(fraction * len(x))
    kept = out != 0
    assert int(kept.sum()) <= k
    assert out[kept].equal(x[kept])
    assert int((x != 0).sum()) <= k or int(kept.sum()) == k
    if bool(kept.any()) and not bool(kept.all()):
        assert x[~kept].abs().max() <= x[kept].abs().min()


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_a_sampled_threshold_keeps_about_the_fraction(fraction: float, seed: int) -> None:
    x = torch.randn(1_000_000, generator=torch.Generator().manual_seed(seed)).pow(3)  # heavier tails than normal
    values = sent(top_k(fraction), {"x": x}, seed).tree["top_k/1=values"]
    assert 0.8 <= len(values) / (fraction * len(x)) <= 1.25
    assert values.abs().min() >= x.abs().sort(descending=True).values[math.ceil(1.25 * fraction * len(x))]


def test_ties_and_zeros_do_not_fool_the_sample() -> None:
    ties = torch.ones(500_000)
    assert len(sent(top_k(0.01), {"x": ties}).tree["top_k/1=values"]) == 5000  # all are as large: not all are sent
    sparse = torch.zeros(1_000_000)
    sparse[::100_000] = 7.0
    values = sent(top_k(0.01), {"x": sparse}).tree["top_k/1=values"]
    assert values.tolist() == [7.0] * 10  # the sample sees zeros alone, and none is sent for being largest
    assert through(top_k(0.01), {"x": sparse})["x"].equal(sparse)
    assert through(top_k(0.01), {"x": torch.zeros(200_000)})["x"].count_nonzero() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("transform", [top_k(0.01), top_k(0.01, "exact"), chunk_top_k(64, 2)], ids=["sampled", "exact", "chunk"])
def test_what_is_not_finite_reaches_the_server(transform: Transform[Any], bad: float) -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    x[77] = bad
    assert not tree.finite(through(transform, {"x": x}))
    assert not tree.finite(through(transform, {"x": torch.full((100_000,), bad)}))


def test_dtypes_shapes_and_what_is_no_fraction() -> None:
    values: Tree = {
        "half": torch.tensor([[1.0, -3.0]], dtype=torch.bfloat16),
        "scalar": torch.tensor(5.0),
        "none": torch.ones(0, 3),
        "steps": torch.tensor([3, 4]),
        "mask": torch.tensor(True),
    }
    out = through(top_k(0.6), values)
    assert {name: (x.dtype, x.shape) for name, x in out.items()} == {name: (x.dtype, x.shape) for name, x in values.items()}
    assert out["half"].tolist() == [[0.0, -3.0]]
    assert (float(out["scalar"]), out["steps"].tolist(), bool(out["mask"])) == (5.0, [3, 4], True)


def test_codecs_stack() -> None:
    x = torch.linspace(-1, 1, 1000)
    both = chain("both", [top_k(0.1, "exact"), int8()])
    update = sent(both, {"x": x})
    assert update.tree["int8/1=q"].shape == (100,)
    out = both.decode(update, {"x": x}).tree["x"]  # type: ignore[misc]
    assert bool((out[50:-50] == 0).all())
    torch.testing.assert_close(out[:50], x[:50], rtol=0, atol=1 / 254 + 1e-6)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 300), chunk=st.integers(1, 64), seed=st.integers(0, 99), data=st.data())
def test_every_chunk_keeps_its_largest(n: int, chunk: int, seed: int, data: Any) -> None:
    keep = data.draw(st.integers(1, chunk))
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    wanted = [
        at + i
        for at in range(0, n, chunk)
        for i in sorted(sorted(range(len(x[at : at + chunk])), key=lambda i: -abs(float(x[at + i])))[:keep])
    ]
    assert chosen(x, chunk, keep).tolist() == wanted


def test_sparse_loco_costs_less_than_its_twelve_bits_a_position() -> None:
    x = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    parts = sent(chunk_top_k(), {"x": x}).tree
    assert parts["chunk_top_k/1=values"].numel() == (1 << 20) // 64
    assert 8 * parts["chunk_top_k/1=positions"].numel() / parts["chunk_top_k/1=values"].numel() < 8.2


def changed(**parts: Tensor) -> Update:
    update = sent(top_k(0.5), {"x": torch.tensor([1.0, 2.0, 3.0, 4.0])})
    return update._replace(tree={**update.tree, **{f"top_k/1={name}": x for name, x in parts.items()}})


@pytest.mark.parametrize(
    "update",
    [
        changed(values=torch.ones(3)),
        changed(values=torch.ones(1, 2)),
        changed(values=torch.tensor([1, 2])),
        changed(values=torch.ones(9)),
        changed(positions=torch.zeros(2, dtype=torch.uint8)),
        changed(positions=torch.ones(5)),
    ],
)
def test_what_top_k_does_not_make_is_refused(update: Update) -> None:
    with pytest.raises(TreeError):
        top_k(0.5).decode(update, {"x": torch.zeros(4)})  # type: ignore[misc]


def test_a_part_that_is_missing_is_refused() -> None:
    update = changed()
    del update.tree["top_k/1=positions"]  # type: ignore[attr-defined]
    with pytest.raises(TreeError, match="positions"):
        top_k(0.5).decode(update, {"x": torch.zeros(4)})  # type: ignore[misc]


def test_wrong_parameters_are_refused() -> None:
    wrong = [lambda: top_k(0.0), lambda: top_k(1.1), lambda: top_k(math.nan), lambda: top_k(0.1, "mean")]  # type: ignore[arg-type]
    for make in wrong:
        with pytest.raises(ConfigError):
            make()
    for keep in (0, 9):
        with pytest.raises(ConfigError, match="1 to 8"):
            chunk_top_k(8, keep)
