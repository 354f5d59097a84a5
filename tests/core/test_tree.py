"""Arithmetic on trees, flat or not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll import tree
from atoll.errors import TreeError
from atoll.testing.store import same_bits
from atoll.types import Tree

SOME: Tree = {"w": torch.tensor([[1.0, -2.0], [3.0, 0.5]]), "b": torch.tensor(4.0), "none": torch.zeros(0, 3)}


def both(a: Tree) -> list[Tree]:
    return [a, tree.pack(a)]


def test_packing_copies_into_one_buffer() -> None:
    flat = tree.pack(SOME)
    assert isinstance(flat, tree.Flat)
    assert flat.buffer.tolist() == [1.0, -2.0, 3.0, 0.5, 4.0]
    assert same_bits(dict(flat), SOME)
    flat["w"][0, 0] = 9.0
    assert float(flat.buffer[0]) == 9.0
    assert float(SOME["w"][0, 0]) == 1.0
    again = tree.pack(flat)
    again["b"].zero_()
    assert float(flat["b"]) == 4.0


def test_what_does_not_fit_one_buffer_is_copied_plainly() -> None:
    mixed: Tree = {"w": torch.ones(2), "h": torch.ones(2, dtype=torch.bfloat16)}
    packed = tree.pack(mixed)
    assert not isinstance(packed, tree.Flat)
    packed["w"].zero_()
    assert mixed["w"].tolist() == [1.0, 1.0]
    assert tree.pack({}) == {}


@pytest.mark.parametrize("a", both(SOME))
@pytest.mark.parametrize("b", both(SOME))
def test_arithmetic(a: Tree, b: Tree) -> None:
    assert tree.add(a, b)["w"].tolist() == [[2.0, -4.0], [6.0, 1.0]]
    assert tree.sub(a, b)["b"].item() == 0.0
    assert tree.scale(a, 0.5)["b"].item() == 2.0
    assert tree.dot(a, b) == pytest.approx(1 + 4 + 9 + 0.25 + 16)
    assert tree.norm(a) == pytest.approx(math.sqrt(30.25))
    assert tree.size_bytes(a) == 20
    own = tree.pack(a) if isinstance(a, tree.Flat) else {n: x.clone() for n, x in a.items()}
    assert tree.axpy_(own, b, -2.0) is own
    assert own["w"].tolist() == [[-1.0, 2.0], [-3.0, -0.5]]
    assert b["w"].tolist() == SOME["w"].tolist()
    assert tree.zeros(a)["w"].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_names_in_another_order_are_the_same_tree() -> None:
    ab, ba = ({n: torch.full((2,), float(ord(n))) for n in order} for order in ("ab", "ba"))
    for x in both(ab):
        for y in both(ba):
            assert tree.sub(x, y)["a"].tolist() == [0.0, 0.0]
            assert tree.axpy_(tree.pack(x), y, -1.0)["b"].tolist() == [0.0, 0.0]
            assert tree.dot(x, y) == tree.dot(x, x)


def test_the_first_trees_dtype_counts() -> None:
    half: Tree = {"w": torch.ones(1, dtype=torch.bfloat16)}
    whole: Tree = {"w": torch.full((1,), 2.0)}
    assert tree.add(half, whole)["w"].dtype == torch.bfloat16
    assert tree.add(whole, half)["w"].dtype == torch.float32


@pytest.mark.parametrize("a", both(SOME))
def test_trees_that_disagree_are_named(a: Tree) -> None:
    for other, told in (
        ({**SOME, "c": torch.ones(1), "d": torch.ones(1)}, "only one side has c, d"),
        ({"w": SOME["w"]}, "only one side has b, none"),
        ({**SOME, "w": torch.ones(4)}, r"on w: \(2, 2\) against \(4,\)"),
    ):
        for b in both(other):
            for act in (tree.add, tree.sub, tree.dot, tree.axpy_):
                with pytest.raises(TreeError, match=told):
                    act(a, b)


@settings(deadline=None, max_examples=60)
@given(values=st.lists(st.floats(width=32), max_size=6), flat=st.booleans())
def test_norm_and_finite_for_any_numbers(values: list[float], flat: bool) -> None:
    a: Tree = {"x": torch.tensor(values[:2], dtype=torch.float32), "y": torch.tensor(values[2:], dtype=torch.float32)}
    a = tree.pack(a) if flat else a
    assert tree.finite(a) == all(map(math.isfinite, values))
    if all(map(math.isfinite, values)):
        assert tree.norm(a) == pytest.approx(math.sqrt(math.fsum(v * v for v in values)), rel=1e-5, abs=1e-44)


def test_a_norm_does_not_hide_what_is_not_a_number() -> None:
    for a in both({"w": torch.tensor([1.0, math.nan])}):
        assert math.isnan(tree.norm(a))
        assert not tree.finite(a)
    assert tree.norm({"w": torch.tensor([3, 4])}) == 5.0
    assert tree.norm({"w": torch.full((4,), 1e4, dtype=torch.float16)}) == pytest.approx(2e4)
    assert tree.norm({}) == 0.0


def test_a_sum_that_overflows_is_finite() -> None:
    assert tree.finite({"w": torch.full((3,), 3e38)})
    assert tree.finite({"n": torch.tensor([2**62, 2**62])})
    assert tree.finite({})


def test_parts_of_a_tree_by_prefix() -> None:
    a: Tree = {"w/x": torch.ones(1), "c/x": torch.zeros(1), "w": torch.ones(1)}
    assert sorted(tree.take(a, "w/")) == ["x"]
    assert sorted(tree.drop(a, "w/")) == ["c/x", "w"]
    assert tree.drop(a, "z/") is a
    assert sorted(tree.put(tree.take(a, "c/"), "d/")) == ["d/x"]
