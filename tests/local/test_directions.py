"""Directions are drawn again from their numbers, and come off weights as exactly as they were put on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import ConfigError, RoundError
from atoll.local.directions import Directions, Weights, add_, on_grids, sha256, values_of

SHAPES = {"a": (3, 5), "b": (7,), "empty": (0, 4), "c": ()}


def some(scale: float = 0.3, seed: int = 0, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, torch.Tensor]:
    dice = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=dice) for name, shape in shapes.items()}


def drawn(shape: tuple[int, ...], j: int, directions: Directions, name: str = "w") -> torch.Tensor:
    """z_j / 4 of a tensor, which fits its grid."""
    grids = on_grids({name: torch.zeros(shape)})
    add_(grids, directions, j, (1, 0.25))
    return grids[name].values * 4


def test_philox_is_that_of_random123() -> None:
    """The known answer for counter 0, key 0 (kat_vectors of Random123); NumPy counts up before it draws."""
    before_zero = np.full(4, 2**64 - 1, np.uint64)
    words = np.random.Philox(key=0, counter=before_zero).random_raw(4)
    assert [f"{int(x):016x}" for x in words] == ["16554d9eca36314c", "db20fe9d672d0fdc", "d7e772cee186176b", "7e68b68aec7ba23b"]


def test_a_normals_values_are_its_quantiles() -> None:
    z = values_of("gaussian")
    assert z.shape == (2**16,)
    below = 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    assert np.abs(below - (np.arange(2**16) + 0.5) / 2**16).max() < 2**-17
    assert np.array_equal(z * 2**16, np.rint(z * 2**16)), "they are whole multiples, the same in every float32"
    assert (z**2).mean() == pytest.approx(1.0, abs=1e-3)
    assert (z**4).mean() == pytest.approx(3.0, abs=0.02)


@pytest.mark.parametrize("draw", ["gaussian", "rademacher"])
def test_draws_are_as_they_should_be_and_unlike_each_other(draw: Any) -> None:
    n = 200_000
    one, other = drawn((n,), 0, Directions(draw=draw)), drawn((n,), 1, Directions(draw=draw))
    elsewhere, again = drawn((n,), 0, Directions(draw=draw), "v"), drawn((n,), 0, Directions(draw=draw))
    assert torch.equal(one, again)
    for z in (one, other, elsewhere, drawn((n,), 0, Directions(seed=1, draw=draw))):
        assert float(z.mean()) == pytest.approx(0.0, abs=5 / math.sqrt(n))
        assert float(z.var()) == pytest.approx(1.0, abs=10 / math.sqrt(n))
        if z is not one:
            assert float((z * one).mean()) == pytest.approx(0.0, abs=5 / math.sqrt(n))
    if draw == "rademacher":
        assert set(one.tolist()) == {1.0, -1.0}


@pytest.mark.parametrize("draw", ["gaussian", "rademacher"])
def test_a_tensors_draws_do_not_depend_on_the_rest_of_the_model(draw: Any) -> None:
    """Alone it is small and its draws are summed one by one; beside a large one they come from a table."""
    alone, beside = some(), {**some(), "large": torch.zeros(200_001)}
    found = []
    for params in (alone, beside):
        grids = on_grids(params)
        add_(grids, Directions(draw=draw), 3, (1, 0.01), (-2, 0.003))
        found.append({name: grids[name].values for name in alone})
    assert sha256(found[0]) == sha256(found[1])


terms = st.lists(st.tuples(st.integers(0, 5), st.floats(-0.05, 0.05, allow_nan=False)), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(put=terms, order=st.randoms(use_true_random=False), draw=st.sampled_from(["gaussian", "rademacher"]))
def test_the_order_does_not_matter_and_all_comes_off(put: list[tuple[int, float]], order: Any, draw: Any) -> None:
    grids, other = on_grids(some()), on_grids(some())
    begun = sha256({name: grid.values for name, grid in grids.items()})
    for j, c in put:
        add_(grids, Directions(draw=draw), j, (1, c))
    shuffled = list(put)
    order.shuffle(shuffled)
    for j, c in shuffled:
        add_(other, Directions(draw=draw), j, (1, c))
    assert sha256({n: g.values for n, g in grids.items()}) == sha256({n: g.values for n, g in other.items()})
    order.shuffle(shuffled)
    for j, c in shuffled:
        add_(grids, Directions(draw=draw), j, (-1, c))
    assert sha256({name: grid.values for name, grid in grids.items()}) == begun


@settings(max_examples=40, deadline=None)
@given(st.floats(2.0**-140, 2.0**100), st.integers(0, 9))
def test_weights_are_rounded_to_about_a_four_millionth(scale: float, seed: int) -> None:
    x = some(scale, seed, {"w": (50,)})["w"]
    grid = on_grids({"w": x})["w"]
    largest = max(float(x.abs().max()), 1.0)
    assert grid.step <= largest * 2.0**-21
    assert float((grid.values - x).abs().max()) <= grid.step / 2
    assert torch.equal(grid.values / grid.step, (grid.values / grid.step).round())


def test_weights_keep_to_their_coefficients_whatever_the_way() -> None:
    direct, wandering = Weights(some(), Directions(8)), Weights(some(), Directions(8))
    level = np.array([0.0, 0.01, 0.0, -0.02, 0.0, 0.0, 0.03, 0.0])
    direct.at(level)
    for way in (level * 0.5, -level, level[::-1].copy(), level):
        wandering.at(way)
        wandering.try_out(2, 1e-3, lambda: 0.0, lambda above, below: 0.125)
    wandering.at(level)
    assert sha256(direct.params) == sha256(wandering.params)


def test_after_a_failure_weights_begin_again() -> None:
    weights, level = Weights(some(), Directions(8)), np.full(8, 0.01)
    weights.at(level)
    want = sha256(weights.params)

    def fails() -> float:
        raise ValueError("the user's loss")

    with pytest.raises(ValueError, match="user's loss"):
        weights.try_out(2, 1e-3, fails, lambda above, below: 0.0)
    with pytest.raises(RoundError):
        weights.at(np.full(8, 1e9))
    weights.at(level)
    assert sha256(weights.params) == want


def test_two_losses_are_those_on_either_side() -> None:
    weights, seen = Weights({"w": torch.zeros(4)}, Directions(8, draw="rademacher")), []
    level = np.zeros(8)
    weights.at(level)

    def look() -> float:
        seen.append(weights.params["w"].clone())
        return float(seen[-1].sum())

    weights.try_out(5, 0.5, look, lambda above, below: -0.25)
    assert torch.equal(seen[0], -seen[1])
    assert torch.equal(seen[0].abs(), torch.full((4,), 0.5))
    assert torch.equal(weights.params["w"], -seen[0] / 2)


def test_what_no_grid_holds_is_refused() -> None:
    with pytest.raises(ConfigError, match="NaN"):
        on_grids({"w": torch.tensor([float("nan")])})
    grids = on_grids({"w": torch.zeros(3)})
    add_(grids, Directions(draw="rademacher"), 0, (1, 3.0))
    with pytest.raises(RoundError, match="w has grown beyond 4"):
        add_(grids, Directions(draw="rademacher"), 0, (1, 3.0))
