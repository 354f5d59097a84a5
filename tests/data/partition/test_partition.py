"""The laws of every partition, and what each promises besides."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atoll.data.partition.dirichlet import dirichlet
from atoll.data.partition.feature_shift import feature_shift
from atoll.data.partition.iid import iid
from atoll.data.partition.natural import natural
from atoll.data.partition.parts import Columns, Part, Partition
from atoll.data.partition.quantity_skew import power_law, quantity_skew
from atoll.data.partition.shards import shards
from atoll.errors import ConfigError, DataError, UnknownName

ALL: dict[str, Callable[[], Partition]] = {
    "iid": iid,
    "dirichlet": lambda: dirichlet(1.0),
    "shards": lambda: shards(2),
    "quantity_skew": lambda: quantity_skew(0.5),
    "power_law": lambda: power_law(1.2),
    "feature_shift": lambda: feature_shift("noise"),
}


def labelled(count: int, classes: int = 10) -> Columns:
    return {"x": torch.arange(count).float().unsqueeze(1), "y": torch.arange(count) % classes}


def labels_of(columns: Columns, part: Part) -> Tensor:
    return torch.as_tensor(columns["y"])[part.rows]


@pytest.mark.parametrize("name", ALL)
@given(count=st.integers(120, 300), clients=st.integers(1, 12), seed=st.integers(0, 2**40))
def test_every_example_has_one_owner_and_every_client_has_some(name: str, count: int, clients: int, seed: int) -> None:
    parts = ALL[name]()(labelled(count), clients, seed)
    assert len(parts) == clients
    assert sorted(torch.cat([part.rows for part in parts]).tolist()) == list(range(count))
    assert min(len(part.rows) for part in parts) >= 1


@pytest.mark.parametrize("name", ALL)
def test_the_seed_alone_decides(name: str) -> None:
    def rows(seed: int) -> list[list[int]]:
        return [part.rows.tolist() for part in ALL[name]()(labelled(200), 5, seed)]

    torch.manual_seed(1)
    first = rows(3)
    torch.manual_seed(2)
    assert first == rows(3)
    assert first != rows(4)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("clients", [0, -1, None, 201])
def test_an_impossible_number_of_clients_is_refused(name: str, clients: int | None) -> None:
    with pytest.raises(ConfigError, match=r"clients is|201 clients .* there are 200"):
        ALL[name]()(labelled(200), clients, 0)


def skew(parts: list[Part], columns: Columns, classes: int = 10) -> float:
    """Mean total variation between a client's labels and all labels: 0 when equal, near 1 when one label each."""
    whole = torch.bincount(torch.as_tensor(columns["y"]), minlength=classes).float()
    distances = []
    for part in parts:
        own = torch.bincount(labels_of(columns, part), minlength=classes).float()
        distances.append(0.5 * (own / own.sum() - whole / whole.sum()).abs().sum())
    return float(torch.stack(distances).mean())


def test_label_skew_falls_as_alpha_grows() -> None:
    columns = labelled(4000)
    by_alpha = [
        sum(skew(dirichlet(alpha, min_examples=0)(columns, 10, seed), columns) for seed in range(10)) / 10
        for alpha in (0.05, 0.3, 1.0, 10.0, 1000.0)
    ]
    assert by_alpha == sorted(by_alpha, reverse=True)
    assert by_alpha[0] > 0.6
    assert by_alpha[-1] < 0.05


def test_dirichlet_shares_have_the_mean_and_variance_of_the_distribution() -> None:
    # A share of Dir_N(alpha) has mean 1 / N and variance (N - 1) / (N^2 (N alpha + 1)).
    columns, clients, alpha = {"y": torch.zeros(1000).long()}, 4, 0.7
    shares = torch.tensor(
        [[len(part.rows) / 1000 for part in dirichlet(alpha, min_examples=0)(columns, clients, seed)] for seed in range(400)]
    )
    variance = (clients - 1) / (clients**2 * (clients * alpha + 1))
    assert torch.allclose(shares.mean(0), torch.full((clients,), 0.25), atol=0.03)
    assert shares.var(0).mean().item() == pytest.approx(variance, rel=0.15)


def test_dirichlet_keeps_its_minimum_or_says_that_it_cannot() -> None:
    parts = dirichlet(0.5, min_examples=20)(labelled(1000), 8, 0)
    assert min(len(part.rows) for part in parts) >= 20
    with pytest.raises(ConfigError, match=r"no draw of dirichlet\(alpha=0.01\) gave each of 50 clients 20 or more of 1000"):
        dirichlet(0.01, min_examples=20)(labelled(1000), 50, 0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_alpha_must_be_positive(alpha: float) -> None:
    with pytest.raises(ConfigError, match="needs a number above 0"):
        dirichlet(alpha)
    with pytest.raises(ConfigError, match="needs a number above 0"):
        quantity_skew(alpha)


def test_shards_as_in_the_paper_give_two_labels_a_client() -> None:
    # McMahan et al. 2017: 60,000 examples of 10 labels in 200 shards of 300; 100 clients get 2 each.
    columns = labelled(60_000)
    parts = shards(2)(columns, 100, 0)
    assert {len(part.rows) for part in parts} == {600}
    assert max(len(labels_of(columns, part).unique()) for part in parts) == 2  # type: ignore[no-untyped-call]


def test_power_law_falls_by_rank_and_zero_is_even() -> None:
    sizes = [len(part.rows) for part in power_law(1.0, min_examples=0)(labelled(1100), 3, 0)]
    assert sizes == [600, 300, 200]  # 1 : 1/2 : 1/3
    assert [len(part.rows) for part in power_law(0.0)(labelled(100), 4, 0)] == [25] * 4


def test_quantity_skew_leaves_labels_alone() -> None:
    columns = labelled(20_000)
    parts = quantity_skew(0.3, min_examples=500)(columns, 5, 0)
    sizes = [len(part.rows) for part in parts]
    assert max(sizes) > 2 * min(sizes)
    assert min(sizes) >= 500
    assert skew(parts, columns) < 0.06


def test_noise_grows_with_the_number_of_the_client_and_is_fixed() -> None:
    columns = {"x": torch.zeros(4000, 10), "y": torch.zeros(4000).long()}
    parts = feature_shift("noise", strength=0.5)(columns, 4, 0)
    spread = []
    for part in parts:
        assert part.transform is not None
        seen = part.transform({"x": torch.zeros(1000, 10)})["x"]
        assert torch.equal(seen, part.transform({"x": torch.zeros(1000, 10)})["x"])
        spread.append(seen.var().item())
    assert spread == pytest.approx([0.0, 0.125, 0.25, 0.375], rel=0.1)  # strength * i / N


def test_rotation_turns_a_square_image_by_a_quarter_and_an_oblong_keeps_lengths() -> None:
    image = torch.rand(2, 1, 6, 6)
    parts = feature_shift("rotation", strength=90.0)({"x": image, "y": torch.zeros(2)}, 2, 0)
    first, last = (part.transform for part in parts)
    assert first is not None
    assert last is not None
    assert torch.equal(first({"x": image})["x"], image)
    turned = last({"x": image})["x"]
    quarters = [torch.rot90(image, k, dims=(2, 3)) for k in (1, 3)]
    assert any(torch.allclose(turned, quarter, atol=1e-5) for quarter in quarters)
    oblong = torch.zeros(1, 1, 5, 9)
    oblong[0, 0, 2, 6] = 1.0  # two right of the centre, so two above or below it when turned
    assert last({"x": oblong})["x"][0, 0, :, 4].max() == pytest.approx(1.0, abs=1e-5)


def test_permutation_moves_features_and_loses_none() -> None:
    x = torch.arange(12.0).reshape(1, 3, 4)
    parts = feature_shift("permutation")({"x": x.expand(3, 3, 4), "y": torch.zeros(3)}, 3, 0)
    seen = [part.transform({"x": x})["x"] for part in parts if part.transform is not None]
    assert torch.equal(seen[0], x)
    assert not torch.equal(seen[1], x)
    assert not torch.equal(seen[1], seen[2])
    assert all(torch.equal(one.flatten().sort().values, x.flatten()) for one in seen)


def test_feature_shift_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match="kind is 'blur', but feature_shift knows noise, rotation, permutation"):
        feature_shift("blur")
    with pytest.raises(ConfigError, match="strength is 2"):
        feature_shift("permutation", strength=2)
    shift = feature_shift("rotation")({"x": torch.zeros(4, 3), "y": torch.zeros(4)}, 2, 0)[1].transform
    assert shift is not None
    with pytest.raises(DataError, match=r"needs images .* shape \(4, 3\)"):
        shift({"x": torch.zeros(4, 3)})
    with pytest.raises(ConfigError, match="changes a column 'x', but there are input_ids"):
        shift({"input_ids": torch.zeros(4)})
    with pytest.raises(DataError, match=r"floating point, but 'x' is torch\.int64"):
        shift({"x": torch.zeros(4, dtype=torch.int64)})


def test_natural_takes_all_or_the_largest_or_the_named() -> None:
    columns: Columns = {"y": torch.zeros(10), "at": list("aaaabbbccd")}
    assert [(part.name, len(part.rows)) for part in natural("at")(columns, None, 0)] == [("a", 4), ("b", 3), ("c", 2), ("d", 1)]
    assert [part.name for part in natural("at")(columns, 2, 0)] == ["a", "b"]
    assert [part.name for part in natural("at", min_examples=3)(columns, None, 0)] == ["a", "b"]
    assert [(part.name, part.rows.tolist()) for part in natural("at", names=["d", "b"])(columns, None, 0)] == [
        ("d", [9]),
        ("b", [4, 5, 6]),
    ]
    assert [part.name for part in natural("y")({"y": torch.tensor([3, 1, 3])}, None, 0)] == ["1", "3"]


def test_natural_names_both_numbers_and_near_names() -> None:
    columns: Columns = {"y": torch.zeros(4), "at": ["Bern", "Bern", "Basel", "Basel"]}
    with pytest.raises(ConfigError, match="clients is 3, but the column 'at' has 2 values"):
        natural("at")(columns, 3, 0)
    with pytest.raises(UnknownName, match="did you mean 'Basel'"):
        natural("at", names=["Basle"])(columns, None, 0)
    with pytest.raises(ConfigError, match="reads a column 'town', which the data do not have; there are y, at"):
        natural("town")(columns, None, 0)
    with pytest.raises(ConfigError, match="no value of 'at' has 5 or more examples; the largest has 2"):
        natural("at", min_examples=5)(columns, None, 0)
    with pytest.raises(ConfigError, match="clients is 1, but 2 are named"):
        natural("at", names=["Basel", "Bern"])(columns, 1, 0)


def test_a_partition_by_label_needs_labels() -> None:
    with pytest.raises(DataError, match=r"has shape \(50, 2\)"):
        dirichlet()({"y": torch.zeros(50, 2)}, 2, 0)
    with pytest.raises(DataError, match="holds measurements, not classes"):
        shards()({"y": torch.rand(500)}, 2, 0)
