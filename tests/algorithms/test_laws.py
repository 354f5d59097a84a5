"""What must hold between algorithms, and between engines, whatever the data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from atoll.algorithms.fedasync import fedasync, fedbuff
from atoll.algorithms.fedavg import fedadam, fedavg, fedavgm
from atoll.algorithms.feddyn import feddyn
from atoll.algorithms.fednova import fednova
from atoll.algorithms.fedprox import fedprox
from atoll.algorithms.fedsgd import fedsgd
from atoll.algorithms.mimelite import mimelite
from atoll.algorithms.qfedavg import qfedavg
from atoll.algorithms.scaffold import scaffold
from atoll.data.examples import Tensors
from atoll.engines.processes import processes
from atoll.local.adamw import adamw
from atoll.local.sgd import sgd
from atoll.models.linear import linear
from atoll.models.mlp import mlp
from atoll.policy import buffered
from atoll.rng import seeded
from atoll.store.memories import Kept
from atoll.tasks.classification import classification
from atoll.tasks.regression import regression
from atoll.testing.store import same_bits
from atoll.transforms.clip import clip
from atoll.transforms.compress.cast import cast
from atoll.transforms.pipe import pipe
from atoll.types import Algorithm, ClientId, Task, Tree
from tests.core.small import Clients, states


def some_clients(sizes: tuple[int, ...] = (7, 4, 12, 1), inputs: int = 5, classes: int = 3) -> Clients:
    draw = torch.Generator().manual_seed(1)
    return {
        ClientId(f"c{i}"): {
            "train": Tensors(
                {
                    "x": torch.randn(n, inputs, generator=draw) + i,
                    "y": torch.randint(classes, (n,), generator=draw),
                }
            )
        }
        for i, n in enumerate(sizes)
    }


def small_task() -> Task:
    return classification(mlp(5, [6], 3))


def normed_task() -> Task:
    with seeded(0):
        return classification(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)))


def last(algorithm: Algorithm, clients: Clients, rounds: int, task: Task, **options: object) -> Tree:
    return algorithm.params(states(algorithm, clients, rounds, task, **options)[-1].algorithm)


def same(a: Tree, b: Tree) -> bool:
    return same_bits(dict(a), dict(b))


def close(a: Tree, b: Tree, tolerance: float = 1e-6) -> None:
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name].detach(), b[name].detach(), rtol=tolerance, atol=tolerance)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(owner=st.lists(st.integers(0, 4), min_size=1, max_size=30), portion=st.sampled_from([None, 1, 4]))
def test_fedsgd_over_any_partition_is_gradient_descent(owner: list[int], portion: int | None) -> None:
    draw = torch.Generator().manual_seed(len(owner))
    x, y = torch.randn(len(owner), 3, generator=draw), torch.randn(len(owner), generator=draw)
    whole, held = Tensors({"x": x, "y": y}), torch.tensor(owner)
    clients = {ClientId(f"c{k}"): {"train": whole.subset((held == k).nonzero()[:, 0])} for k in sorted(set(owner))}
    task = regression(linear(3, 1))
    got = last(fedsgd(task, lr=0.1, batch_size=portion), clients, 3, task)
    model = linear(3, 1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.mse_loss(model(x)[:, 0], y).backward()
        optimiser.step()
    close(got, dict(model.named_parameters()), 1e-5)


def test_scaffolds_first_round_is_fedavg() -> None:
    task, clients = small_task(), some_clients()
    local = sgd(task, lr=0.1, batch_size=4, epochs=2)
    close(
        last(scaffold(local, population=4), clients, 1, task),
        last(fedavg(local, weights="uniform"), clients, 1, task),
    )


def test_fedprox_without_a_pull_is_fedavg() -> None:
    task, clients = small_task(), some_clients()
    local = sgd(task, batch_size=4, momentum=0.9)
    assert same(last(fedprox(local, mu=0.0), clients, 2, task), last(fedavg(local), clients, 2, task))


def test_fednova_with_equal_steps_is_fedavg() -> None:
    task, clients = small_task(), some_clients()
    for local in (sgd(task, batch_size=4, steps=3), sgd(task, batch_size=4, steps=3, momentum=0.9)):
        close(last(fednova(local), clients, 2, task), last(fedavg(local), clients, 2, task))


def test_qfedavg_at_zero_is_fedavg() -> None:
    task, clients = small_task(), some_clients()
    local = sgd(task, batch_size=4)
    close(last(qfedavg(local, task, q=0.0), clients, 2, task), last(fedavg(local, weights="uniform"), clients, 2, task))


def test_mimelite_without_momentum_is_fedavg() -> None:
    task, clients = small_task(), some_clients()
    local = sgd(task, batch_size=4)
    close(last(mimelite(local, task, beta=0.0), clients, 2, task), last(fedavg(local, weights="uniform"), clients, 2, task))


ALGORITHMS: dict[str, Callable[[Task], Algorithm]] = {
    "fedsgd": lambda task: fedsgd(task, momentum=0.5, batch_size=3),
    "fedavg": lambda task: fedavg(sgd(task, batch_size=4)),
    "fedavg adamw": lambda task: fedavg(adamw(task, lr=0.01, batch_size=4)),
    "fedprox": lambda task: fedprox(sgd(task, batch_size=4, momentum=0.9), mu=0.1),
    "fedavgm": lambda task: fedavgm(sgd(task, batch_size=4)),
    "fedadam": lambda task: fedadam(sgd(task, batch_size=4)),
    "scaffold": lambda task: scaffold(sgd(task, batch_size=4), population=4),
    "fednova": lambda task: fednova(sgd(task, batch_size=4, momentum=0.9)),
    "feddyn": lambda task: feddyn(sgd(task, batch_size=4), population=4),
    "qfedavg": lambda task: qfedavg(sgd(task, batch_size=4), task),
    "mimelite": lambda task: mimelite(sgd(task, batch_size=4), task, batch_size=5),
    "fedasync": lambda task: fedasync(sgd(task, batch_size=4)),
    "fedbuff": lambda task: fedbuff(sgd(task, batch_size=4)),
    "clip and cast": lambda task: pipe(fedavg(sgd(task, batch_size=4)), clip(0.1), cast("bf16")),
    "scaffold cast": lambda task: pipe(scaffold(sgd(task, batch_size=4), population=4), cast("bf16")),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_order_of_the_population_does_not_matter(name: str) -> None:
    task, clients = small_task(), some_clients()
    algorithm = ALGORITHMS[name](task)
    forth = last(algorithm, clients, 2, task, population=sorted(clients))
    assert same(forth, last(algorithm, clients, 2, task, population=sorted(clients, reverse=True)))


# Of one client, the batch norm of this model would see a single example, which torch refuses.
SIZES = (8, 4, 12, 6)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("make", [small_task, normed_task])
def test_processes_give_the_bits_of_serial(name: str, make: Callable[[], Task]) -> None:
    task, clients = make(), some_clients(SIZES)
    algorithm, memories, others = ALGORITHMS[name](task), Kept(), Kept()
    alone = last(algorithm, clients, 3, task, memories=memories)
    together = last(algorithm, clients, 3, task, memories=others, engine=processes, workers=2)
    assert same(alone, together)
    for client in clients:
        assert same(memories.get(client), others.get(client)), f"what {client} remembers differs"


def test_a_buffered_run_is_the_same_at_one_worker() -> None:
    task, clients = small_task(), some_clients()
    algorithm, policy = fedbuff(sgd(task, batch_size=4)), buffered(3, buffer=2)
    alone = last(algorithm, clients, 4, task, policy=policy)
    assert same(alone, last(algorithm, clients, 4, task, policy=policy, engine=processes, workers=1))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_batch_norms_statistics_stay_what_they_are(name: str) -> None:
    """A running variance is a mean of squares: an algorithm that makes it negative gives NaN at the first evaluation."""
    task, clients = normed_task(), some_clients(SIZES)
    got = last(ALGORITHMS[name](task), clients, 4, task)
    assert all(bool(x.isfinite().all()) for x in got.values())
    assert float(got["1.running_var"].min()) > 0
