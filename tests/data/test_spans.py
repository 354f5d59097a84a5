"""Clients that are made when they are asked for: the same as a dict of them, in flat arrays."""

from __future__ import annotations

import pickle
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atoll.data import spans
from atoll.data.clients import share
from atoll.data.examples import Tensors
from atoll.data.partition.iid import iid
from atoll.data.spans import Ids, Spans, flat
from atoll.types import ClientId

NAMES = st.lists(st.text(st.characters(codec="utf-8"), max_size=6), unique=True, max_size=30)


@given(names=NAMES, other=st.text(st.characters(codec="utf-8"), max_size=6))
def test_names_are_a_dict_of_their_numbers(names: list[str], other: str) -> None:
    ids, plain = Ids(*flat(names)), {name: number for number, name in enumerate(names)}
    for each in (ids, pickle.loads(pickle.dumps(ids))):
        assert list(each) == names
        assert {name: each[name] for name in names} == plain  # type: ignore[index]
        assert (other in each) == (other in plain)
    assert 3 not in ids


def test_names_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "_hash", len)
    ids = Ids(*flat(["Rome", "Bonn", "", "Oslo", "Ulm"]))
    assert [ids[ClientId(name)] for name in ("Bonn", "Oslo", "Ulm", "", "Rome")] == [1, 3, 4, 2, 0]
    assert "Graz" not in ids


@given(sizes=st.lists(st.integers(0, 4), min_size=2, max_size=12).filter(lambda sizes: len(sizes) % 2 == 0), strewn=st.booleans())
def test_each_client_has_its_spans(sizes: list[int], strewn: bool) -> None:
    rows = torch.randperm(20 + sum(sizes), generator=torch.Generator().manual_seed(0))[: sum(sizes)]
    base = Tensors({"y": 100 + torch.arange(20 + sum(sizes))})
    whole = base.subset(rows) if strewn else base
    expected = whole.column("y")[: sum(sizes)].split(sizes)
    bounds = torch.tensor([0, *sizes]).cumsum(0)
    clients = Spans({ClientId(f"c{i}"): i for i in range(len(sizes) // 2)}, ["train", "test"], bounds, whole)
    for made in (clients, pickle.loads(pickle.dumps(clients))):
        found = [examples for splits in made.values() for examples in splits.values()]
        assert [len(each) for each in found] == sizes
        for examples, y in zip(found, expected, strict=True):
            assert torch.equal(examples.column("y"), y)
            assert torch.equal(examples.take(torch.arange(len(y)).flip(0))["y"], y.flip(0))
    assert all(each.columns is base.columns for splits in clients.values() for each in splits.values())  # type: ignore[attr-defined]


def test_what_is_not_there_is_a_key_error() -> None:
    clients = Spans({ClientId("a"): 0}, ["train"], torch.tensor([0, 2]), Tensors({"y": torch.arange(2)}))
    assert ("a" in clients, "b" in clients, "test" in clients[ClientId("a")]) == (True, False, False)
    assert clients.get(ClientId("b"), {}).get("train") is None
    with pytest.raises(KeyError):
        clients[ClientId("a")]["test"]


def test_spans_of_spans_and_what_lies_beyond_their_end() -> None:
    whole = Tensors({"y": torch.arange(10)})
    span = whole.span(2, 8).span(1, 4)
    assert span.index == range(3, 6)
    assert span.column("y").data_ptr() == whole.columns["y"][3:].data_ptr()
    assert span.subset(torch.tensor([2, 0])).column("y").tolist() == [5, 3]
    assert span.subset(torch.tensor([2, 0, 1])).span(1, 3).column("y").tolist() == [3, 4]
    assert whole.span(4, 4).column("y").tolist() == []
    for wrong in (-1, 3):  # a neighbour's example
        with pytest.raises(IndexError):
            span.take(torch.tensor([wrong]))
        with pytest.raises(IndexError):
            span.subset(torch.tensor([wrong]))


def test_a_shared_data_set_holds_one_index_and_no_object_a_client() -> None:
    data = share("many", {"y": torch.arange(6000)}, iid(), clients=1000, seed=0)
    assert isinstance(data.clients, Spans)
    index = data.clients.whole.index
    assert isinstance(index, torch.Tensor)
    assert sorted(index.tolist()) == list(range(6000))
    first = data.clients[ClientId("client-000")]["train"]
    assert isinstance(first, Tensors)
    assert isinstance(first.index, torch.Tensor)
    assert first.index.untyped_storage().data_ptr() == index.untyped_storage().data_ptr()


def test_a_hundred_thousand_clients_weigh_as_much_as_their_arrays() -> None:
    count = 100_000
    arrays = flat(f"client-{i}" for i in range(count))
    tracemalloc.start()
    try:
        clients = Spans(Ids(*arrays), ["train", "test"], torch.arange(2 * count + 1), Tensors({"y": torch.arange(2 * count)}))
        assert sum(1 for _ in clients) == len(clients) == count
        assert len(clients[ClientId("client-99999")]["test"]) == 1
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < count  # not one byte a client of Python's
