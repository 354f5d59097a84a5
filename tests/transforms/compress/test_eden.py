"""EDEN is right in the mean, errs as its theory says, and refuses what its encoder does not make."""

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
from atoll.transforms.compress import eden as module
from atoll.transforms.compress.eden import eden
from atoll.types import Assignment, ClientId, Tree, Update

NMSE = {1: math.pi / 2 - 1, 2: 0.13312, 3: 0.035784, 4: 0.0095921}  # 1 / (1 - D) - 1, D of Max 1960, table I


def sent(values: Tree, bits: Any = 1, seed: int = 0) -> Update:
    assignment = Assignment(0, ClientId("a"), "train", {}, seed)
    return eden(bits).encode(assignment, {}, {}, Update(0, ClientId("a"), "train", values, 1.0, {}))[0]


def through(x: Tensor, bits: Any = 1, seed: int = 0) -> Tensor:
    update = sent({"x": x}, bits, seed)
    found = eden(bits).decode
    assert found is not None
    return found(update, {"x": x}).tree["x"]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_eden_obeys_the_laws(bits: Any) -> None:
    check_transform(eden(bits))


def vectors() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    two = torch.zeros(65536)
    two[3], two[4000] = 1.0, 0.5
    return {
        "Gaussian": torch.randn(100_000, generator=draw),
        "heavy tails": torch.randn(100_000, generator=draw) ** 5,
        "two entries": two,
        "constant": torch.ones(65536),
    }


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("name", vectors())
def test_the_error_is_that_of_the_theory_whatever_the_vector(name: str, bits: int) -> None:
    x = vectors()[name]
    errors = [float((through(x, bits, seed) - x).square().sum() / x.square().sum()) for seed in range(4)]
    assert sum(errors) / 4 == pytest.approx(NMSE[bits], rel=0.02)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_levels_are_those_of_least_error(bits: int) -> None:
    """Each is the mean of a Gaussian between the boundaries half way to its neighbours (Lloyd's condition)."""
    levels = torch.cat([-torch.tensor(module._LEVELS[bits]).flip(0), torch.tensor(module._LEVELS[bits])]).double()
    infinite = torch.tensor([math.inf], dtype=torch.float64)
    ends = torch.cat([-infinite, (levels[1:] + levels[:-1]) / 2, infinite])
    density = torch.exp(-ends.square() / 2) / math.sqrt(2 * math.pi)
    share = torch.special.ndtr(ends).diff()
    torch.testing.assert_close(-density.diff() / share, levels, rtol=1e-6, atol=0)
    distortion = 1 - float((share * levels**2).sum())
    assert 1 / (1 - distortion) - 1 == pytest.approx(NMSE[bits], rel=1e-4)


@pytest.mark.parametrize("n", [2, 500])
def test_the_mean_over_seeds_is_the_vector_though_it_is_short_and_sparse(n: int) -> None:
    x = torch.zeros(n)
    x[0], x[1] = 1.0, 0.5
    draws = torch.stack([through(x, 1, seed) for seed in range(800)])
    off = (draws.mean(0) - x).abs()
    assert bool((off <= 5 * draws.std(0) / math.sqrt(800) + 1e-6).all())


@settings(deadline=None, max_examples=60)
@given(
    exponent=st.integers(-120, 120),
    n=st.integers(1, 300),
    bits=st.integers(1, 4),
    seed=st.integers(0, 2**63 - 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_what_comes_back_has_the_length_along_the_vector(exponent: int, n: int, bits: int, seed: int, dtype: torch.dtype) -> None:
    """S is such that <x, decoded> = |x|^2 in every single draw, from the smallest to the largest values."""
    x = (torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent).to(dtype)
    back = through(x, bits, seed)
    assert (back.shape, back.dtype) == (x.shape, x.dtype)
    unit, found = x.double() / 2.0**exponent, back.double() / 2.0**exponent
    assert float(unit @ found) == pytest.approx(float(unit @ unit), rel=1e-4 if dtype != torch.bfloat16 else 2e-2)


def test_odd_trees_survive() -> None:
    values: Tree = {"scalar": torch.tensor(3.0), "empty": torch.ones(0, 3), "n": torch.tensor([1, 2]), "zero": torch.zeros(5)}
    update = sent(values)
    undo = eden().decode
    assert undo is not None
    back = undo(update, values).tree
    assert {name: x.shape for name, x in back.items()} == {name: x.shape for name, x in values.items()}
    assert back["n"].tolist() == [1, 2]
    nothing = sent({"w": torch.zeros(70)})
    assert not bool(undo(nothing, None).tree["w"].any())
    assert undo(sent({"e": torch.ones(0)}), None).tree["e"].shape == (0,)


def test_a_block_of_denormals_is_not_lost() -> None:
    x = torch.full((64,), 1e-42)
    back = through(x, 4)
    assert float((back - x).norm()) <= 0.5 * float(x.double().norm())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_reaches_the_server_as_such(bad: float) -> None:
    x = torch.ones(70_000)
    x[66_000] = bad
    assert not tree.finite(sent({"x": x}).tree)


@pytest.mark.parametrize(
    ("n", "padded", "blocks"), [(1, 64, 1), (64, 64, 1), (65, 128, 1), (55_050, 55_104, 7), (200_000, 200_000, 7)]
)
@pytest.mark.parametrize("bits", [1, 3])
def test_a_small_model_pays_for_its_own_entries(n: int, padded: int, blocks: int, bits: int) -> None:
    parts = sent({"x": torch.ones(n)}, bits).tree
    assert parts["eden/1=codes"].numel() == padded * bits // 8
    assert parts["eden/1=scale"].numel() == blocks
    assert padded - n < 64


def test_hostile_parts_are_refused() -> None:
    like: Tree = {"x": torch.ones(300)}
    good = dict(sent(like).tree)
    undo = eden().decode
    assert undo is not None
    codes, scale, seed = (good[f"eden/1={name}"] for name in ("codes", "scale", "seed"))
    wrong: dict[str, list[Tensor]] = {
        "codes": [codes[:-1], codes.float(), codes.view(1, -1), torch.cat([codes, codes]), codes[:0]],
        "scale": [scale[:-1], scale.long(), torch.cat([scale, scale]), scale[0]],
        "seed": [seed.float(), seed.view(1), seed.int()],
    }
    for name, tensors in wrong.items():
        for bad in tensors:
            with pytest.raises(TreeError):
                undo(Update(0, ClientId("a"), "train", {**good, f"eden/1={name}": bad}, 1.0, {}), like)
    for name in wrong:
        with pytest.raises(TreeError):
            undo(Update(0, ClientId("a"), "train", tree.drop(good, f"eden/1={name}"), 1.0, {}), like)
    scaled = {**good, "eden/1=scale": scale * math.nan, "eden/1=seed": seed - 2**62}
    assert not tree.finite(undo(Update(0, ClientId("a"), "train", scaled, 1.0, {}), like).tree)


def test_another_number_of_bits_is_refused() -> None:
    wrong: Any
    for wrong in (0, 5, 1.5, -1):
        with pytest.raises(ConfigError, match="must be 1, 2, 3 or 4"):
            eden(wrong)
