"""A budget is spent where it gains most; what is sent says how it was split; the largest saving is chosen for a link."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll import tree
from atoll.errors import ConfigError, TreeError
from atoll.testing.transform import check_transform
from atoll.transforms.compress.auto import budget, choose, fraction
from atoll.transforms.compress.ecsq import ecsq
from atoll.transforms.compress.layered import Point, _share_out, layered
from atoll.types import Assignment, ClientId, Transform, Tree, Update

SCALES = (1.0, 0.1, 0.01, 3.0, 0.3)


def uneven(seed: int = 0, count: int = 4000) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {f"w{i}": scale * torch.randn(count, generator=draw) for i, scale in enumerate(SCALES)}


def sent(codec: Transform[None], values: Tree, model: Tree | None = None) -> Update:
    update = Update(0, ClientId("a"), "train", values, 1.0, {})
    return codec.encode(Assignment(0, update.client, "train", values if model is None else model, 3), {}, {}, update)[0]


def lost(codec: Transform[None], values: Tree) -> tuple[float, float]:
    """(Bits a value of payload, NMSE)."""
    encoded = sent(codec, values)
    assert codec.decode is not None
    error = tree.norm(tree.sub(codec.decode(encoded, values).tree, values)) ** 2 / tree.norm(values) ** 2
    return tree.size_bytes(encoded.tree) * 8 / sum(x.numel() for x in values.values()), error


def test_layered_obeys_the_laws() -> None:
    check_transform(layered(40.0, sensitivity="relative"), error=0.05)  # of 41 values, where scales cost more than codes
    check_transform(layered(0.5))


@pytest.mark.parametrize("bits", [0.25, 1.0, 2.0, 5.0])
def test_the_budget_holds(bits: float) -> None:
    assert lost(layered(bits), uneven())[0] <= 1.1 * bits + 8 * 64 / 20_000


def test_it_loses_less_than_one_step_for_all_at_no_more_bytes() -> None:
    for step in (2.0, 1.0, 0.5):
        bits, error = lost(ecsq(step=step), uneven(count=20_000))
        assert lost(layered(bits), uneven(count=20_000))[1] < 0.9 * error


def test_relative_sensitivity_spends_on_small_parameters() -> None:
    values = {name: torch.randn(4000, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("ab")}
    model = {"a": torch.full((4000,), 10.0), "b": torch.full((4000,), 0.1)}
    equal, relative = (sent(layered(2.0, kind), values, model).tree["layered/1=choice"] for kind in ("equal", "relative"))  # type: ignore[arg-type]
    assert abs(int(equal[0]) - int(equal[1])) <= 1
    assert relative[0] + 2 <= relative[1]  # the same error counts more against small parameters


def test_the_split_is_the_best_one_by_hand() -> None:
    # Per byte: 8 for a's first, 3 for its second, 5 for b's. Three bytes buy a's first and b's, then nothing fits but c's.
    a = [Point(0, 0, 12.0), Point(1, 1, 4.0), Point(2, 2, 1.0)]
    b = [Point(0, 0, 10.0), Point(1, 2, 0.0)]
    assert _share_out([a, b], 3.0) == [1, 1]
    assert _share_out([a, b], 4.0) == [2, 1]
    assert _share_out([a, b], 0.5) == [0, 0]
    # A point above the hull is taken where only it fits: (1 byte, 9) lies above the line from (0, 10) to (4, 0).
    assert _share_out([[Point(0, 0, 10.0), Point(1, 1, 9.0), Point(2, 4, 0.0)]], 1.0) == [1]


@given(st.integers(0, 9), st.floats(0.01, 9.0))
@settings(max_examples=30, deadline=None)
def test_more_bytes_never_lose_more_where_one_tensor_is_sent(seed: int, bits: float) -> None:
    values = {"w": torch.randn(2000, generator=torch.Generator().manual_seed(seed))}
    assert lost(layered(1.3 * bits + 0.1), values)[1] <= lost(layered(bits), values)[1] + 1e-6


@pytest.mark.parametrize("bad", [torch.tensor([99] * 5, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8), torch.zeros(5)])
def test_a_split_that_makes_no_sense_is_refused(bad: torch.Tensor) -> None:
    codec, values = layered(1.0), uneven(count=100)
    encoded = sent(codec, values)
    assert codec.decode is not None
    with pytest.raises(TreeError, match="layered"):
        codec.decode(encoded._replace(tree={**encoded.tree, "layered/1=choice": bad}), values)


def test_nan_is_not_hidden_by_not_sending_it() -> None:
    codec, values = layered(0.01), uneven(count=100)
    values["w2"][5] = math.nan
    assert codec.decode is not None
    assert not tree.finite(codec.decode(sent(codec, values), values).tree)


@pytest.mark.parametrize(
    ("budget_bytes", "names"),
    [(5e6, []), (2.5e6, ["cast"]), (1.1e6, ["int8"]), (3e5, ["layered"]), (2e4, ["top_k", "few_bits"])],
)
def test_a_tighter_budget_takes_a_stronger_codec(budget_bytes: float, names: list[str]) -> None:
    assert [link["name"] for link in choose(1_000_000, budget_bytes).links] == names


def test_feedback_is_chosen_only_where_clients_take_part_often() -> None:
    assert [link["name"] for link in choose(1_000_000, 2e4, participation=0.5).links] == ["feedback"]
    assert [link["name"] for link in choose(1_000_000, 2e4, participation=0.49).links] == ["top_k", "few_bits"]


def test_a_budget_is_bytes_or_a_link() -> None:
    assert budget(link_mbit_s=10.0) == 12.5e6
    assert budget(budget_bytes=7.0) == 7.0
    assert fraction(8.0) == pytest.approx(1.0)  # more than all of them
    for wrong in ({}, {"link_mbit_s": 1.0, "budget_bytes": 1.0}, {"budget_bytes": 0.0}, {"link_mbit_s": 1.0, "upload_s": -1.0}):
        with pytest.raises(ConfigError):
            budget(**wrong)
    with pytest.raises(ConfigError, match="too few to send anything"):
        choose(10_000_000, 10.0)


def test_what_is_chosen_fits_the_budget() -> None:
    from atoll.transforms.compress.few_bits import few_bits
    from atoll.transforms.compress.top_k import top_k

    values = {"w": torch.randn(200_000, generator=torch.Generator().manual_seed(0))}
    for bits in (0.05, 0.2):
        links = choose(200_000, bits * 25_000).links
        update = sent(top_k(links[0]["fraction"]), values)
        update = few_bits(2).encode(Assignment(0, update.client, "train", values, 3), {}, {}, update)[0]
        assert 0.5 * bits < tree.size_bytes(update.tree) * 8 / 200_000 < bits
