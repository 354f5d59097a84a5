"""PowerSGD sends a projection of each matrix, comes nearer as it starts where it ended, and refuses hostile factors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atoll import tree
from atoll.errors import ConfigError, TreeError
from atoll.testing.transform import check_transform
from atoll.transforms.compress.powersgd import powersgd
from atoll.types import Assignment, ClientId, Tree, Update
from atoll.wire.table import Entry, Table, write


def update(values: Tree) -> Update:
    return Update(0, ClientId("a"), "train", values, 1.0, {})


def sent(values: Tree, rank: int, memory: Tree | None = None, seed: int = 0) -> tuple[Tree, Tree]:
    assignment = Assignment(0, ClientId("a"), "train", tree.zeros(values), seed)
    found, after = powersgd(rank).encode(assignment, {}, memory or {}, update(values))
    return found.tree, after


def received(values: Tree, like: Tree, rank: int) -> Tree:
    undo = powersgd(rank).decode
    assert undo is not None
    return undo(update(values), like).tree


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rank", [1, 2])
def test_powersgd_obeys_the_laws(rank: int) -> None:
    check_transform(powersgd(rank), error=1.0)  # a projection is never longer than what it projects


def test_a_matrix_of_that_rank_comes_back() -> None:
    like: Tree = {"w": normal(30, 3) @ normal(3, 40, seed=1), "b": normal(7)}
    parts, memory = sent(like, 3)
    assert {name: tuple(x.shape) for name, x in parts.items()} == {"b": (7,), "powersgd/1=p": (90,), "powersgd/1=q": (120,)}
    assert memory["w"].shape == (40, 3)
    back = received(parts, like, 3)
    assert list(back) == ["w", "b"]
    torch.testing.assert_close(back["w"], like["w"], rtol=1e-4, atol=1e-4)
    assert back["b"].equal(like["b"])


def test_the_first_factor_is_orthonormal_and_the_error_is_orthogonal_to_it() -> None:
    like: Tree = {"w": normal(30, 4, 10)}
    parts, _ = sent(like, 2)
    p = parts["powersgd/1=p"].view(30, 2)
    torch.testing.assert_close(p.t() @ p, torch.eye(2), atol=1e-5, rtol=0)
    error = (like["w"] - received(parts, like, 2)["w"]).view(30, 40)
    assert float((p.t() @ error).abs().max()) < 1e-5


def test_a_warm_start_ends_at_the_best_of_that_rank() -> None:
    """Subspace iteration of one matrix: with singular values 2^-i, rank 2 leaves sqrt(sum over i >= 2 of 4^-i) (Eckart-Young)."""
    u, v = torch.linalg.qr(normal(20, 20)).Q, torch.linalg.qr(normal(20, 20, seed=1)).Q
    like: Tree = {"w": u @ torch.diag(0.5 ** torch.arange(20.0)) @ v.t()}
    best, errors = math.sqrt(sum(4.0**-i for i in range(2, 20))), []
    memory: Tree = {}
    for seed in range(12):
        parts, memory = sent(like, 2, memory, seed)
        errors.append(float((received(parts, like, 2)["w"] - like["w"]).norm()))
    assert errors[0] > best * 1.01
    assert errors[-1] == pytest.approx(best, rel=1e-3)


def test_what_would_not_be_smaller_stays() -> None:
    values: Tree = {
        "b": normal(9),
        "scalar": torch.tensor(1.0),
        "empty": torch.ones(0, 8),
        "small": normal(4, 4),
        "n": torch.ones(9, 9).long(),
    }
    parts, memory = sent(values, 2)
    assert parts is values
    assert not memory
    assert received(values, values, 2) is values


@settings(deadline=None, max_examples=60)
@given(
    m=st.integers(1, 20),
    n=st.integers(1, 20),
    rank=st.integers(1, 3),
    exponent=st.integers(-120, 120),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_no_error_is_longer_than_the_update(m: int, n: int, rank: int, exponent: int, dtype: torch.dtype) -> None:
    like: Tree = {"w": (normal(m, n, seed=m) * 2.0**exponent).to(dtype)}
    parts, _ = sent(like, rank)
    back = received(parts, like, rank)["w"]
    assert (back.shape, back.dtype) == ((m, n), dtype)
    scaled = (back.double() - like["w"].double()) / 2.0**exponent
    assert float(scaled.norm()) <= float((like["w"].double() / 2.0**exponent).norm()) * (1 + 2**-6)
    assert sum(x.numel() for x in parts.values()) == min(m * n, rank * (m + n))


def test_zeros_denormals_and_huge_values() -> None:
    zeros: Tree = {"w": torch.zeros(20, 20)}
    parts, memory = sent(zeros, 2)
    assert not bool(received(parts, zeros, 2)["w"].any())
    assert bool(memory["w"].any()), "the next round would start from nothing"
    for size in (1e-42, 1e37):
        one: Tree = {"w": torch.outer(torch.ones(20), torch.linspace(-1, 1, 30)) * size}
        back = received(sent(one, 1)[0], one, 1)["w"].double()
        assert float((back - one["w"].double()).norm()) <= 0.1 * float(one["w"].double().norm())


def test_a_norm_beyond_float32_reaches_the_server_as_infinite() -> None:
    values: Tree = {"w": torch.full((20, 20), 3e38)}
    assert not tree.finite(sent(values, 1)[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_hidden_and_does_not_spoil_the_memory(bad: float) -> None:
    values: Tree = {"w": normal(20, 20)}
    _, memory = sent(values, 2)
    values["w"][3, 3] = bad
    parts, after = sent(values, 2, memory)
    assert not tree.finite(parts)
    assert not tree.finite(received(parts, values, 2))
    assert after["w"].equal(memory["w"])


def test_a_memory_of_another_shape_is_not_used() -> None:
    values: Tree = {"w": normal(20, 20)}
    assert sent(values, 2, {"w": torch.ones(20, 3)})[0]["powersgd/1=p"].equal(sent(values, 2)[0]["powersgd/1=p"])


def test_hostile_factors_are_refused() -> None:
    like: Tree = {"w": normal(20, 30), "b": normal(3)}
    good, _ = sent(like, 2)
    p, q = good["powersgd/1=p"], good["powersgd/1=q"]

    def table(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        entries = tuple(Entry(f"w{at}", dtype, shape) for at, shape in enumerate(shapes))
        return torch.frombuffer(bytearray(write(Table(entries))), dtype=torch.uint8)

    for change in (
        {"p": p[:-1]},
        {"q": torch.cat([q, q])},
        {"p": p.long()},
        {"p": p.view(2, -1)},
        {"q": q[0]},
        {"table": table((1 << 20, 1 << 20)), "p": torch.ones(1 << 21), "q": torch.ones(1 << 21)},
        {"table": table((2, 2))},
        {"table": table((20,))},
        {"table": table((20, 30), dtype=torch.int64)},
        {"table": torch.zeros(9, dtype=torch.uint8)},
    ):
        with pytest.raises(TreeError):
            received({**good, **{f"powersgd/1={name}": x for name, x in change.items()}}, like, 2)
    for name in ("p", "q"):
        with pytest.raises(TreeError):
            received(tree.drop(good, f"powersgd/1={name}"), like, 2)
    undo = powersgd(2).decode
    assert undo is not None
    with pytest.raises(TreeError, match="how large"):
        undo(update(good), None)
    with pytest.raises(ConfigError, match="1 or more"):
        powersgd(0)
