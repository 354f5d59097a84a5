"""Batches: what is read, in which order, from what seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atoll.data.examples import Tensors, batches
from atoll.errors import ConfigError, DataError
from atoll.types import Batch, Batching


def numbered(count: int, width: int = 1) -> Tensors:
    return Tensors({"x": torch.arange(count).unsqueeze(1).expand(count, width).contiguous(), "y": torch.arange(count)})


class Lazy:
    """Examples that are no tensors: only what the protocol asks."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def take(self, index: Tensor) -> Batch:
        return {"y": index}


def read(examples: Tensors | Lazy, batching: Batching, seed: int = 0) -> list[list[int]]:
    return [batch["y"].tolist() for batch in batches(examples, batching, seed)]


@given(
    count=st.integers(1, 40),
    size=st.one_of(st.none(), st.integers(1, 50)),
    epochs=st.integers(1, 4),
    shuffle=st.booleans(),
    width=st.sampled_from([1, 60_000]),
)
def test_each_pass_reads_every_example_once(count: int, size: int | None, epochs: int, shuffle: bool, width: int) -> None:
    got = read(numbered(count, width), Batching(batch_size=size, epochs=epochs, shuffle=shuffle))
    size = min(size or count, count)
    a_pass = -(-count // size)
    assert len(got) == epochs * a_pass
    for epoch in range(epochs):
        part = got[epoch * a_pass : (epoch + 1) * a_pass]
        assert [len(batch) for batch in part[:-1]] == [size] * (a_pass - 1)
        read_in_pass = [row for batch in part for row in batch]
        assert (sorted(read_in_pass) if shuffle else read_in_pass) == list(range(count))


@given(count=st.integers(1, 30), size=st.integers(1, 12), steps=st.integers(1, 20), shuffle=st.booleans())
def test_steps_are_the_first_batches_of_as_many_passes_as_that_takes(count: int, size: int, steps: int, shuffle: bool) -> None:
    long = read(numbered(count), Batching(batch_size=size, epochs=20, shuffle=shuffle))
    assert read(numbered(count), Batching(batch_size=size, steps=steps, shuffle=shuffle)) == long[:steps]


@given(count=st.integers(1, 30), size=st.integers(1, 12), steps=st.one_of(st.none(), st.integers(1, 9)))
def test_how_examples_are_stored_does_not_change_the_order(count: int, size: int, steps: int | None) -> None:
    batching = Batching(batch_size=size, epochs=2, steps=steps, shuffle=True)
    small, large = read(numbered(count), batching, 7), read(numbered(count, 60_000), batching, 7)
    view = read(numbered(2 * count).subset(torch.arange(count)), batching, 7)
    assert small == large == view == read(Lazy(count), batching, 7)


def test_the_order_depends_on_the_seed_alone_and_differs_by_pass() -> None:
    batching = Batching(batch_size=4, epochs=2, shuffle=True)
    torch.manual_seed(1)
    first = read(numbered(40), batching, 3)
    torch.manual_seed(2)
    assert first == read(numbered(40), batching, 3)
    assert first != read(numbered(40), batching, 4)
    assert first[:10] != first[10:]


def test_columns_stay_beside_each_other() -> None:
    for batch in batches(numbered(50), Batching(batch_size=7, epochs=3, shuffle=True), 0):
        assert batch["x"][:, 0].tolist() == batch["y"].tolist()


def test_no_examples_give_no_batches() -> None:
    assert read(numbered(0), Batching(batch_size=4, epochs=3)) == []
    assert read(numbered(3).subset(torch.tensor([], dtype=torch.int64)), Batching(steps=5, shuffle=True)) == []


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"epochs": 0}, {"steps": -1}, {"batch_size": 2.5}, {"epochs": None}])
def test_a_wrong_number_is_refused_before_the_first_batch(wrong: dict[str, object]) -> None:
    name = next(iter(wrong))
    with pytest.raises(ConfigError, match=rf"{name} is .* must be a whole number of 1 or more"):
        batches(numbered(3), Batching(**wrong), 0)  # type: ignore[arg-type]


def test_a_share_copies_nothing_and_a_share_of_a_share_reads_the_same_base() -> None:
    whole = numbered(10)
    share = whole.subset(torch.tensor([9, 7, 5])).subset(torch.tensor([2, 0]))
    assert share.columns is whole.columns
    assert share.take(torch.tensor([0, 1]))["y"].tolist() == share.column("y").tolist() == [5, 9]


def test_a_change_makes_columns_of_its_own() -> None:
    whole = numbered(4)
    changed = whole.subset(torch.tensor([1, 2])).mapped(lambda batch: {**batch, "y": batch["y"] * 10})
    assert changed.column("y").tolist() == [10, 20]
    assert whole.column("y").tolist() == [0, 1, 2, 3]


def test_columns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"one length, got \{'x': 3, 'y': 2\}"):
        Tensors({"x": torch.zeros(3), "y": torch.zeros(2)})
    with pytest.raises(DataError, match="one or more columns"):
        Tensors({})
    with pytest.raises(DataError, match="column without an axis"):
        Tensors({"x": torch.tensor(1.0)})
    with pytest.raises(DataError, match="no column 'z'; there are x, y"):
        numbered(2).column("z")
