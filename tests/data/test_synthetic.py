"""Clients made on demand: always the same, only when asked, and a set that can be learned."""

from __future__ import annotations

import pytest
import torch

from atoll.algorithms.fedavg import fedavg
from atoll.data.synthetic import synthetic
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.local.sgd import sgd
from atoll.models.linear import linear
from atoll.policy import synchronous
from atoll.tasks.classification import classification


def whole(data: object, client: str, split: str) -> dict[str, torch.Tensor]:
    examples = data.clients[client][split]  # type: ignore[attr-defined]
    return dict(examples.take(torch.arange(len(examples))))


def test_a_client_is_always_the_same_whatever_the_number_of_clients_in_its_width() -> None:
    few, many = synthetic(clients=200, seed=3), synthetic(clients=900, seed=3)
    for split in ("train", "test"):
        a, b = whole(few, "client-007", split), whole(many, "client-007", split)
        assert torch.equal(a["x"], b["x"])
        assert torch.equal(a["y"], b["y"])
    assert not torch.equal(whole(few, "client-007", "train")["x"][:2], whole(few, "client-008", "train")["x"][:2])
    assert not torch.equal(
        whole(few, "client-007", "train")["x"][:2], whole(synthetic(clients=200, seed=4), "client-007", "train")["x"][:2]
    )


def test_train_and_test_of_a_client_are_apart() -> None:
    data = synthetic(clients=20, test_fraction=0.3)
    train, test = whole(data, "client-05", "train"), whole(data, "client-05", "test")
    assert len(test["y"]) == round(0.3 * (len(train["y"]) + len(test["y"])))
    assert not (train["x"][:, None] == test["x"][None]).all(-1).any()


def test_names() -> None:
    clients = synthetic(clients=12).clients
    assert list(clients) == [f"client-{i:02d}" for i in range(12)]
    assert all(client in clients for client in clients)
    for absent in ("client-12", "client-1", "client-001", "client-", "client-1x", "server-0", 3):
        assert absent not in clients
    with pytest.raises(KeyError):
        clients["client-12"]  # type: ignore[index]


def test_sizes_have_the_mean_that_was_asked_for() -> None:
    clients = synthetic(clients=4000, mean_examples=40.0, spread=0.8, test_fraction=0.0).clients
    sizes = [len(splits["train"]) for splits in clients.values()]
    assert sum(sizes) / len(sizes) == pytest.approx(40.0, rel=0.05)


def test_without_spread_one_model_fits_all_and_with_it_none_does() -> None:
    found = {}
    for alpha in (0.0, 4.0):
        data = synthetic(clients=300, alpha=alpha, beta=0.0, mean_examples=60.0, spread=0.0, seed=1)
        torch.manual_seed(0)
        task = classification(linear(60, 10))
        found[alpha] = (
            Federation(task, data, fedavg(sgd(task, lr=0.5, batch_size=10)), synchronous(20)).run(15).metrics["accuracy"]
        )
    assert found[0.0] > 0.6
    assert found[0.0] > found[4.0] + 0.2


@pytest.mark.parametrize("wrong", [{"clients": 0}, {"classes": 1}, {"alpha": -1.0}, {"mean_examples": 0.0}])
def test_what_can_not_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        synthetic(**wrong)  # type: ignore[arg-type]
