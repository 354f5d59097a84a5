"""Trees and federations on their way to another process: the same bits, what is shared shared, a module with its binding."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from atoll import tree
from atoll.data.examples import Tensors
from atoll.engines.parcel import Parcel, pack, unpack, unwrap, wrap
from atoll.errors import ConfigError
from atoll.local.binding import binding
from atoll.local.evaluate import evaluate
from atoll.local.sgd import sgd
from atoll.models.mlp import mlp
from atoll.round import work
from atoll.tasks.classification import classification
from atoll.testing.store import same_bits
from atoll.types import Assignment, ClientId, Update
from tests.algorithms.test_laws import some_clients

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]
TREES = st.lists(
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)), max_size=5
)  # (dtype, shape) of each tensor: empty and 0-d ones, and trees without any, included


@given(TREES)
def test_a_tree_comes_back_as_it_was(kinds: list[tuple[torch.dtype, list[int]]]) -> None:
    values = {f"t{i}": (torch.randn(shape) * 3).to(dtype) for i, (dtype, shape) in enumerate(kinds)}
    values["nan"] = torch.tensor([float("nan"), float("inf")])
    for want in (values, tree.pack({"a": torch.randn(3, 2), "b": torch.randn(())})):
        found = unpack(pickle.loads(pickle.dumps(pack(want))))
        assert isinstance(found, tree.Flat) == isinstance(want, tree.Flat)
        assert list(found) == list(want)
        assert same_bits(dict(found), dict(want))


def test_a_flat_tree_is_not_copied() -> None:
    flat = tree.pack({"w": torch.ones(100)})
    assert isinstance(flat, tree.Flat)
    found = unpack(pack(flat))
    assert found["w"].data_ptr() == flat.buffer.data_ptr()


def sent(thing: Any) -> tuple[Any, Parcel]:
    """The thing unwrapped over read-only buffers, as Ray gives them."""
    body, buffers = wrap(thing)
    copies = [buffer.copy() for buffer in buffers]
    for copy in copies:
        copy.flags.writeable = False
    return unwrap(Parcel(body, copies)), Parcel(body, copies)


def lies_in(x: torch.Tensor, parcel: Parcel) -> bool:
    starts = [(b.ctypes.data, b.ctypes.data + b.nbytes) for b in parcel.buffers]
    return any(start <= x.data_ptr() < end for start, end in starts)


def test_columns_and_the_frozen_base_are_shared_and_the_rest_is_a_copy() -> None:
    whole = Tensors({"x": torch.randn(300, 100), "y": torch.arange(300)})
    module = nn.Sequential(nn.Linear(200, 200), nn.BatchNorm1d(20_000))
    module[0].weight.requires_grad_(False)
    shares = {"a": whole.subset(torch.tensor([1, 5])), "b": whole.subset(torch.tensor([2])), "whole": whole}
    (found, again), parcel = sent((shares, module))
    assert lies_in(found["a"].columns["x"], parcel)
    assert found["a"].columns["x"].data_ptr() == found["b"].columns["x"].data_ptr() == found["whole"].columns["x"].data_ptr()
    assert found["a"].take(torch.tensor([1]))["x"].equal(whole.columns["x"][5:6])
    assert lies_in(again[0].weight, parcel)
    assert again[0].weight.equal(module[0].weight)
    assert not again[0].weight.requires_grad
    assert not lies_in(again[1].weight, parcel), "a parameter that is trained may be written to"
    assert not lies_in(again[1].running_mean, parcel), "a buffer is written to in training"
    assert again[1].weight.requires_grad
    assert sum(b.nbytes for b in parcel.buffers) + len(parcel.body) < 700_000, "something is sent twice"


def test_tied_and_overlapping_tensors_stay_so() -> None:
    base = torch.arange(50_000.0)
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    (whole, part, one, other), _ = sent((base, base[10:20:2], first, second))
    part.add_(100)
    assert whole[10:20:2].tolist() == [110, 112, 114, 116, 118]
    assert one.weight is other.weight


def test_a_module_and_its_binding_belong_together_afterwards() -> None:
    """Several folds of one task, used one after another in one process, each knowing what the others bound."""
    task, clients = classification(mlp(5, [6], 3)), some_clients()
    folds = {"train": sgd(task, batch_size=4, momentum=0.9), "plain": sgd(task), "evaluate": evaluate(task, split="train")}
    (again, module, bound), _ = sent((folds, task.module, binding(task.module)))
    assert module is not task.module
    assert binding(module) is bound
    start = tree.pack(binding(task.module).state())
    for round, name in enumerate(("train", "evaluate", "plain", "train", "evaluate")):
        asked = Assignment(round, ClientId("c0"), name, start, seed=round)
        want, _ = work(asked, folds[name], clients[ClientId("c0")]["train"], {})
        got, _ = work(asked, again[name], clients[ClientId("c0")]["train"], {})
        assert isinstance(want, Update)
        assert isinstance(got, Update)
        assert same_bits(dict(got.tree), dict(want.tree))
        assert got.metrics.get("loss") == want.metrics.get("loss")
    binding(task.module).restore()


def test_what_cannot_be_pickled_is_refused_in_a_sentence() -> None:
    lock = threading.Lock()
    with pytest.raises(ConfigError, match="can't be pickled"):
        wrap({"train": lambda: lock})


def test_a_parcel_of_nothing() -> None:
    assert sent({"x": torch.empty(0, 3)})[0]["x"].shape == (0, 3)
    assert np.asarray(pack({}).data).nbytes == 0
    assert unpack(pack({})) == {}
