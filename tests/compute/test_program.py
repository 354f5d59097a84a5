"""A captured step has the same bits whenever it is done: first, compared, or replayed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from atoll import tree
from atoll.compute.measured import measured
from atoll.compute.stacked import stacked
from atoll.compute.traced import Traced, traced
from atoll.data.examples import Tensors
from atoll.errors import ConfigError
from atoll.interfaces import Compute
from atoll.local.binding import binding
from atoll.local.sgd import sgd
from atoll.models.mlp import mlp
from atoll.rng import seeded
from atoll.tasks.classification import classification
from atoll.testing.store import same_bits
from atoll.types import Assignment, ClientId, Failure, Tree, Trip, Update


def asked(clients: int = 4) -> list[Trip]:
    with seeded(0):
        task = classification(mlp(64, [32], 10))
        data = [Tensors({"x": torch.randn(40, 64), "y": torch.randint(10, (40,))}) for _ in range(clients)]
    local, start = sgd(task, lr=0.1, batch_size=10), tree.pack(binding(task.module).state())
    return [Trip(Assignment(0, ClientId(f"c{i}"), "train", start, i), local, own, {}) for i, own in enumerate(data)]


def bits(way: Compute, trips: list[Trip]) -> list[Tree]:
    found = []
    for answer, _ in way.run(trips):
        assert isinstance(answer, Update), answer
        found.append({name: x.clone() for name, x in answer.tree.items()})
    return found


@pytest.mark.parametrize("make", [traced, lambda: stacked(2)])
def test_the_bits_do_not_depend_on_what_was_computed_before(make: Callable[[], Compute]) -> None:
    """So workers that take clients in any order, and a run that is resumed, agree."""
    trips, way = asked(), make()
    first = [each for pair in (trips[:2], trips[2:]) for each in bits(way, pair)]
    again = [each for pair in (trips[:2], trips[2:]) for each in bits(way, pair)]
    for a, b in zip(first, again, strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize(("told", "at_once"), [("train: eager", 1), ("train: traced", 1), ("train: stacked 3", 3)])
def test_a_choice_that_was_made_stays(told: str, at_once: int) -> None:
    way = measured(told)
    assert way.ready(asked()[0]) == at_once
    assert way.told == told


def test_a_client_that_diverges_does_not_make_a_program_trusted() -> None:
    way, (good, *_) = Traced(), asked()
    nan = tree.map(lambda x: torch.full_like(x, float("nan")), good.assignment.tree)
    list(way.run([good._replace(assignment=good.assignment._replace(tree=nan))]))
    assert [kept[1].trusted for kept in way.programs._kept.values() if kept[1]] == [False]
    list(way.run([good]))
    assert [kept[1].trusted for kept in way.programs._kept.values() if kept[1]] == [True]


def test_a_client_without_examples_does_not_decide_for_the_others() -> None:
    way, auto, (some, *_) = stacked(3), measured(), asked()
    none = some._replace(examples=Tensors({"x": torch.zeros(0, 64), "y": torch.zeros(0, dtype=torch.int64)}))
    assert (way.ready(none), way.ready(some)) == (1, 3)
    assert auto.ready(none) == 1
    assert [type(answer) for answer, _ in auto.run([none])] == [Failure]
    assert not auto.told
    auto.ready(some)
    assert auto.told.startswith("train: ")


def test_fewer_than_one_client_at_once_is_refused() -> None:
    with pytest.raises(ConfigError):
        stacked(0)
