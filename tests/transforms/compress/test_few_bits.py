"""A sign and few magnitudes: hand-worked levels, the error of Max's quantisers, and refusals."""

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
from atoll.transforms.compress.few_bits import few_bits
from atoll.types import Assignment, ClientId, Update

MAX_1960 = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}  # least mean square errors of a unit normal, table I


def sent(x: Tensor, bits: int) -> Update:
    start = Assignment(0, ClientId("a"), "train", {}, 0)
    return few_bits(bits).encode(start, {}, {}, Update(0, ClientId("a"), "train", {"x": x}, 1.0, {}))[0]


def through(x: Tensor, bits: int) -> Tensor:
    decode: Any = few_bits(bits).decode
    found: Tensor = decode(sent(x, bits), {"x": x}).tree["x"]
    return found


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_few_bits_obeys_the_laws(bits: int) -> None:
    check_transform(few_bits(bits))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_error_is_near_the_least_there_is(bits: int) -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    error = float((through(x, bits) - x).square().mean())
    assert 0.98 * MAX_1960[bits] < error < 1.12 * MAX_1960[bits]
    assert sent(x, bits).tree["few_bits/1=codes"].numel() == 200_000 * bits // 8


def test_one_bit_is_the_sign_and_the_mean_magnitude() -> None:
    assert through(torch.tensor([1.0, -2.0, 6.0]), 1).tolist() == [3.0, -3.0, 3.0]


@settings(deadline=None, max_examples=100)
@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=60), bits=st.integers(1, 4))
def test_signs_stay_and_no_magnitude_is_beyond_the_entries(values: list[float], bits: int) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    out = through(x, bits)
    assert bool(((out >= 0) == (x >= 0))[out != 0].all())
    assert float(out.abs().max()) <= float(x.abs().max()) * (1 + 1e-6)
    if len(set(x.abs().tolist())) == 1:
        assert out.equal(x + 0.0)


def test_entries_of_few_magnitudes_are_exact() -> None:
    x = torch.tensor([1.0, -5.0, 1.0, 5.0, -1.0])
    assert through(x, 2).equal(x)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_what_is_not_finite_reaches_the_server(bits: int, bad: float) -> None:
    x = torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    x[7] = bad
    assert not tree.finite(sent(x, bits).tree)
    assert not tree.finite(sent(torch.full((3,), bad), bits).tree)


@pytest.mark.parametrize(
    "part",
    [
        {"magnitudes": torch.ones(3)},
        {"magnitudes": torch.tensor([1, 2])},
        {"codes": torch.zeros(2, dtype=torch.uint8)},
        {"codes": torch.zeros(1)},
    ],
    ids=str,
)
def test_what_it_does_not_make_is_refused(part: dict[str, Tensor]) -> None:
    update = sent(torch.tensor([1.0, 2.0, 3.0]), 2)
    decode: Any = few_bits(2).decode
    with pytest.raises(TreeError):
        decode(update._replace(tree={**update.tree, **{f"few_bits/1={name}": x for name, x in part.items()}}), None)


@pytest.mark.parametrize("bits", [0, 5, 1.5])
def test_wrong_parameters_are_refused(bits: Any) -> None:
    with pytest.raises(ConfigError, match=f"bits = {bits}"):
        few_bits(bits)
