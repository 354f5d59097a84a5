"""What xor sends comes back bit for bit, whatever the bits; what is damaged is refused; small steps of bf16 cost a few bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll import tree
from atoll.errors import ConfigError, TreeError
from atoll.testing.store import same_bits, trees
from atoll.testing.transform import check_transform
from atoll.transforms.compress.xor import xor
from atoll.types import Assignment, ClientId, Tree, Update

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
SHAPES: tuple[tuple[int, ...], ...] = ((), (0, 3), (1,), (7, 5), (300,))


def update_of(values: Tree) -> Update:
    return Update(0, ClientId("a"), "train", values, 1.0, {})


def sent(new: Tree, held: Tree) -> Tree:
    return xor().encode(Assignment(0, ClientId("a"), "train", held, 0), {}, {}, update_of(new))[0].tree


def back(encoded: Tree, held: Tree) -> Tree:
    return xor().decode(update_of(encoded), held).tree  # type: ignore[misc]


def noise(dtype: torch.dtype, shape: tuple[int, ...], draw: torch.Generator) -> torch.Tensor:
    """Any bits at all: NaNs with payloads, -0.0, infinities, denormals."""
    count = torch.Size(shape).numel() * dtype.itemsize
    return torch.randint(256, (count,), generator=draw, dtype=torch.uint8).view(dtype).view(shape)


def test_it_obeys_the_laws() -> None:
    check_transform(xor(), tolerance=0.0, error=0.0)


forms = st.dictionaries(st.text("abc./~", min_size=1, max_size=6), st.tuples(st.sampled_from(DTYPES), st.sampled_from(SHAPES)))


@settings(deadline=None, max_examples=150)
@given(forms=forms, seed=st.integers(0, 2**32), near=st.booleans())
def test_any_bits_come_back(forms: Any, seed: int, near: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    held: Tree = {name: noise(dtype, shape, draw) for name, (dtype, shape) in forms.items()}
    new: Tree = {name: x.clone() if near else noise(x.dtype, tuple(x.shape), draw) for name, x in held.items()}
    got = back(sent(new, held), held)
    assert same_bits({name: got[name] for name in new}, dict(new))


def test_what_is_hard_to_keep_comes_back() -> None:
    for values in trees():
        zeros: Tree = {name: torch.zeros_like(x) for name, x in values.items()}
        got = back(sent(values, zeros), zeros)
        assert same_bits({name: got[name] for name in values}, dict(values))


@pytest.mark.parametrize(("dtype", "least", "most"), [(torch.bfloat16, 1.0, 5.0), (torch.float32, 12.0, 26.0)])
def test_a_small_step_costs_a_few_bits(dtype: torch.dtype, least: float, most: float) -> None:
    draw = torch.Generator().manual_seed(0)
    held = {"w": torch.randn(100_000, generator=draw)}
    new = {"w": held["w"] + 1e-3 * torch.randn(100_000, generator=draw)}
    step = sent(tree.map(lambda x: x.to(dtype), new), tree.map(lambda x: x.to(dtype), held))
    assert least < 8 * tree.size_bytes(step) / 100_000 < most


def test_the_table_is_sent_only_if_the_model_is_another() -> None:
    held: Tree = {"w": torch.ones(4), "b": torch.ones(2)}
    assert list(sent(held, held)) == ["xor/1=4"]
    part: Tree = {"b": torch.full((2,), 3.0)}
    assert list(sent(part, held)) == ["xor/1=table", "xor/1=4"]
    assert back(sent(part, held), held)["b"].tolist() == [3.0, 3.0]


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 2**32), place=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.booleans())
def test_damage_is_refused_or_changes_numbers_alone(seed: int, place: int, byte: int, cut: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    held: Tree = {"w": torch.randn(50, generator=draw)}
    encoded = dict(sent({"w": torch.randn(50, generator=draw)}, held))
    data = encoded["xor/1=4"].clone()
    at = place % len(data)
    data[at] = byte
    encoded["xor/1=4"] = data[:at] if cut else data
    try:
        got = back(encoded, held)
    except TreeError:
        return
    assert {name: x.shape for name, x in got.items()} == {"w": torch.Size([50])}


def test_what_is_not_one_of_its_steps_is_refused() -> None:
    held: Tree = {"w": torch.ones(4)}
    good = sent(held, held)
    for wrong, why in (
        ({"xor/1=2": good["xor/1=4"]}, "numbers of 2 bytes"),
        ({"xor/1=4": torch.ones(3)}, "should be bytes"),
        ({"xor/1=4": torch.zeros(9, dtype=torch.uint8)}, "unpack"),
        (sent({"w": torch.ones(5)}, {"w": torch.ones(5)}), "unpacks to 20 bytes, and the model has 16"),
        (sent({"v": torch.ones(4)}, {"v": torch.ones(4), "w": torch.ones(2)}), "'v', which this end does not hold"),
    ):
        with pytest.raises(TreeError, match=why):
            back(wrong, held)
    with pytest.raises(TreeError, match="there is nothing"):
        xor().decode(update_of(good), None)  # type: ignore[misc]
    with pytest.raises(TreeError, match="no such 'w'"):
        sent(held, {"w": torch.ones(5)})
    with pytest.raises(ConfigError, match="from 1"):
        xor(level=0)
