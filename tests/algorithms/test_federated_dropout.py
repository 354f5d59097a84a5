"""algorithms/federated_dropout.py against FedAvg, against numbers worked out on paper, and on frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from atoll import tree
from atoll.algorithms.fedavg import fedavg
from atoll.algorithms.federated_dropout import drawn, federated_dropout
from atoll.data.digits import digits
from atoll.data.examples import Tensors
from atoll.data.partition.dirichlet import dirichlet
from atoll.engines.processes import processes
from atoll.engines.stacked import stacked
from atoll.engines.traced import traced
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.local.adamw import adamw
from atoll.local.binding import binding
from atoll.local.sgd import sgd
from atoll.models import shapes
from atoll.models.cnn import cnn
from atoll.models.linear import linear
from atoll.models.lstm import lstm
from atoll.models.mlp import mlp
from atoll.models.transformer import transformer
from atoll.models.units import held, hidden_units
from atoll.policy import buffered, synchronous
from atoll.rng import seeded
from atoll.store import state as store_state
from atoll.tasks.classification import classification
from atoll.tasks.custom import custom
from atoll.tasks.regression import regression
from atoll.testing.local import check_local
from atoll.testing.store import same_bits
from atoll.transforms.compress.int8 import int8
from atoll.transforms.pipe import pipe
from atoll.types import Algorithm, Assignment, ClientId, Task, Tree
from tests.algorithms.test_laws import close, last, normed_task, same, some_clients
from tests.core.small import Clients, Log, half_squared, states


def images(counts: tuple[int, ...] = (5, 3)) -> Clients:
    draw = torch.Generator().manual_seed(2)
    sets = [Tensors({"x": torch.randn(n, 1, 6, 6, generator=draw), "y": torch.randint(3, (n,), generator=draw)}) for n in counts]
    return {ClientId(f"c{i}"): {"train": held_} for i, held_ in enumerate(sets)}


@pytest.mark.parametrize("draw", ["client", "round"])
@pytest.mark.parametrize("weights", ["examples", "uniform"])
def test_keeping_everything_is_fedavg(draw: Any, weights: Any) -> None:
    for task, clients in ((classification(mlp(5, [6], 3)), some_clients()), (normed_task(), some_clients((7, 4, 12, 2)))):
        local = sgd(task, batch_size=4, epochs=2, momentum=0.5)
        got = last(federated_dropout(local, task, 1.0, draw, weights=weights), clients, 3, task)
        assert same(got, last(fedavg(local, weights=weights), clients, 3, task))
    task = classification(cnn(1, 6, [3], 3, 5, 3))
    local = adamw(task, batch_size=2)
    assert same(last(federated_dropout(local, task, 1.0, draw), images(), 2, task), last(fedavg(local), images(), 2, task))


def test_keeping_everything_is_fedavg_for_late_updates_too() -> None:
    task, clients, policy = classification(mlp(5, [6], 3)), some_clients(), buffered(clients_in_flight=3, buffer=2)
    local = sgd(task, batch_size=4)
    got = last(federated_dropout(local, task, 1.0), clients, 4, task, policy=policy)
    assert same(got, last(fedavg(local), clients, 4, task, policy=policy))


def two_units() -> tuple[Task, Clients]:
    """y = v . relu(w x) at x = 1 with w = v = (1, 1); a has one example at 3, b three at 5."""
    module = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    for p in module.parameters():
        p.data.fill_(1.0)
    ys = {"a": [3.0], "b": [5.0, 5.0, 5.0]}
    sets = {ClientId(c): {"train": Tensors({"x": torch.ones(len(y), 1), "y": torch.tensor(y)})} for c, y in ys.items()}
    return custom(module, half_squared), sets


def test_two_units_by_hand() -> None:
    """A client with one unit says v w = 1: at lr 1/2, w and v both move by (Y - 1) / 2, which is 1 at a and 2 at b.

    Scaled it says 2 v w = 2: both move by (Y - 2), which is 1 at a and 3 at b.
    """
    seen = set()
    for seed in range(8):
        task, clients = two_units()
        units = {c: int(drawn(hidden_units(task.module), 0.5, seed, 0, c)["0"]) for c in clients}
        for scale, by_b in ((False, 2.0), (True, 3.0)):
            task, clients = two_units()
            algorithm = federated_dropout(sgd(task, 0.5, None), task, 0.5, scale=scale, seed=seed)
            got = last(algorithm, clients, 1, task)
            wanted = [1.0, 1.0]
            if units["a"] == units["b"]:
                wanted[units["a"]] += (1 * 1.0 + 3 * by_b) / 4
            else:
                wanted[units["a"]] += 1.0
                wanted[units["b"]] += by_b
            assert got["0.weight"].flatten().tolist() == got["2.weight"].flatten().tolist() == wanted
        seen.add((units["a"], units["b"]))
    assert len(seen) == 4, "all cases were met"


@pytest.mark.parametrize("draw", ["client", "round"])
def test_what_nobody_held_does_not_move(draw: Any) -> None:
    task, clients = classification(mlp(5, [6, 7], 3)), some_clients()
    groups = hidden_units(task.module)
    algorithm = federated_dropout(sgd(task, batch_size=4, momentum=0.9), task, 0.3, draw, seed=5)
    before: Tree = {name: x.clone() for name, x in binding(task.module).state().items()}
    frozen = 0
    for k, after in enumerate(states(algorithm, clients, 3, task)):
        params = after.algorithm.params
        there = [held(groups, drawn(groups, 0.3, 5, k, *([c] if draw == "client" else [])), before) for c in clients]
        for name, x in params.items():
            anyone = sum(h[name] for h in there).expand_as(x) > 0  # type: ignore[union-attr]
            assert torch.equal(x[~anyone], before[name][~anyone])
            assert not torch.equal(x[anyone], before[name][anyone])
            frozen += int((~anyone).sum())
        before = {name: x.clone() for name, x in params.items()}
    assert frozen > 0


MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mlp": (mlp, {"inputs": 5, "hidden": [9, 6], "outputs": 3}),
    "cnn": (cnn, {"size": 6, "filters": [5], "kernel": 3, "hidden": 7, "outputs": 3}),
    "lstm": (lstm, {"features": 2, "hidden": 7, "layers": 2}),
    "transformer": (transformer, {"vocabulary": 9, "width": 6, "layers": 2, "heads": 2, "context": 5}),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("keep", [0.1, 0.5, 1.0])
def test_shapes_are_known_without_the_model(name: str, keep: float) -> None:
    factory, given = MODELS[name]
    task = custom(factory(**given), half_squared)
    algorithm = federated_dropout(sgd(task), task, keep)
    request = next(algorithm.round(algorithm.init(binding(task.module).state()), [ClientId("a")]))
    sent = request.tree_for(ClientId("a"))
    assert {n: tuple(x.shape) for n, x in sent.items()} == shapes.narrowed(name, given, keep)


def test_bytes_on_frames_are_those_of_the_small_model() -> None:
    task, clients = classification(mlp(64, [32, 16], 10)), some_clients(inputs=64)
    for keep in (0.25, 0.5, 1.0):
        log = Log()
        states(federated_dropout(sgd(task), task, keep), clients, 2, task, log=log)
        wanted = 4 * shapes.count(shapes.narrowed("mlp", {"inputs": 64, "hidden": [32, 16], "outputs": 10}, keep))
        for event in log.of("update"):
            m = event.metrics
            assert m["bytes_down"] - m["header_down"] == m["bytes_up"] - m["header_up"] == wanted
            assert m["header_down"] + m["header_up"] < 500


def test_a_step_costs_what_the_small_model_costs() -> None:
    """Floating-point operations of a client's step: a layer between two halved ones takes a quarter."""
    task = classification(mlp(64, [64, 64], 8))
    x = {"x": torch.randn(16, 64), "y": torch.randint(8, (16,))}
    counts = {}
    for keep in (0.5, 1.0):
        algorithm = federated_dropout(sgd(task), task, keep)
        request = next(algorithm.round(algorithm.init(binding(task.module).state()), [ClientId("a")]))
        carry = algorithm.local["train"].init(Assignment(0, ClientId("a"), "train", request.tree_for(ClientId("a")), 0), {})
        with FlopCounterMode(display=False) as counter:
            algorithm.local["train"].step(carry, x)
        counts[keep] = counter.get_total_flops()
    # forward and backward of (64, h), (h, h), (h, 8); the first layer needs no gradient of its inputs
    assert counts == {h / 64: 2 * 16 * (2 * 64 * h + 3 * h * h + 3 * h * 8) for h in (32, 64)}


@pytest.mark.parametrize("draw", ["client", "round"])
def test_engines_agree(draw: Any) -> None:
    task, clients = classification(mlp(5, [6, 4], 3)), some_clients()
    algorithm = federated_dropout(sgd(task, batch_size=4, epochs=3), task, 0.5, draw)
    want = last(algorithm, clients, 3, task)
    assert same(last(algorithm, clients, 3, task, engine=processes, workers=2), want)
    close(last(algorithm, clients, 3, task, engine=traced), want, 1e-5)
    close(last(algorithm, clients, 3, task, engine=stacked, chunk=2), want, 1e-5)


def test_a_small_model_s_step_is_captured(caplog: pytest.LogCaptureFixture) -> None:
    for module, clients in ((mlp(5, [6, 4], 3), some_clients()), (cnn(1, 6, [4], 3, 6, 3), images((8, 8)))):
        task = classification(module)
        algorithm = federated_dropout(sgd(task, batch_size=4), task, 0.5)
        request = next(algorithm.round(algorithm.init(binding(module).state()), list(clients)))
        examples = clients[ClientId("c0")]["train"]
        check_local(algorithm.local["train"], examples, request.tree_for(ClientId("c0")), captures=True)
        last(algorithm, clients, 2, task, engine=traced)
    assert not caplog.records, "a step that could not be a graph would have been said"


def test_recurrent_and_attending_models_learn() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(24, 6, 1, generator=draw)
    clients: Clients = {ClientId("a"): {"train": Tensors({"x": x, "y": x[:, -1]})}}
    with seeded(0):
        task = regression(lstm(1, 1, 16))
    log = Log()
    states(federated_dropout(sgd(task, 0.2, 8, epochs=5), task, 0.5), clients, 6, task, log=log)
    losses = [event.metrics["loss"] for event in log.of("update")]
    assert losses[-1] < 0.3 * losses[0]


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    task, clients = classification(mlp(5, [6], 3)), some_clients()
    algorithm = federated_dropout(sgd(task, batch_size=4), task, 0.5)
    whole = states(algorithm, clients, 4, task)
    store_state.save(whole[1], tmp_path / "state")
    found = store_state.load(whole[0], tmp_path / "state")
    again = states(algorithm, clients, 4, task, state=found)
    assert same_bits(again[-1].algorithm, whole[-1].algorithm)


@pytest.mark.parametrize("draw", ["client", "round"])
def test_late_updates_are_put_where_they_were_held_or_dropped(draw: Any) -> None:
    task, clients = classification(mlp(5, [6], 3)), some_clients()
    algorithm, log = federated_dropout(sgd(task, batch_size=4), task, 0.5, draw), Log()
    policy = buffered(clients_in_flight=3, buffer=2)
    got = states(algorithm, clients, 5, task, policy=policy, log=log)[-1]
    assert tree.finite(got.algorithm.params)
    ages = {event.metrics["age"] for event in log.of("update")}
    assert (max(ages) > 0) == (draw == "client")
    assert not log.of("failure")


def test_codecs_attach() -> None:
    task, clients = classification(mlp(5, [16], 3)), some_clients()
    log = Log()
    inner = federated_dropout(sgd(task, batch_size=4), task, 0.5)
    close(last(pipe(inner, int8()), clients, 2, task, log=log), last(inner, clients, 2, task), 0.02)
    assert not log.of("failure")


def test_what_is_not_of_the_shapes_sent_is_refused() -> None:
    task, clients = classification(mlp(5, [6], 3)), some_clients()
    inner = federated_dropout(sgd(task, batch_size=4), task, 0.5)
    whole = binding(task.module).state()

    def final(assignment: Any, carry: Any, seen: Any) -> Any:
        update, memory = inner.local["train"].final(assignment, carry, seen)
        return (update._replace(tree=whole) if assignment.client == "c1" else update), memory

    hostile = inner._replace(local={"train": inner.local["train"]._replace(final=final)})
    log = Log()
    states(hostile, clients, 1, task, log=log)
    assert [(event.client, event.text.partition(":")[0]) for event in log.of("failure")] == [("c1", "invalid")]


def test_refusals() -> None:
    task = classification(mlp(5, [6], 3))
    for keep in (0.0, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="must be above 0 and at most 1"):
            federated_dropout(sgd(task), task, keep)
    with pytest.raises(ConfigError, match="must be 'client' or 'round'"):
        federated_dropout(sgd(task), task, draw="epoch")  # type: ignore[arg-type]
    plain = regression(linear(3, 1))
    with pytest.raises(ConfigError, match="no hidden units are known of Linear"):
        federated_dropout(sgd(plain), plain)


def test_the_scaler_is_its_own_algorithm_s_alone() -> None:
    """A task that a scaled algorithm has used gives an unscaled one the same bits as one that has not."""
    clients = some_clients()
    task, fresh = classification(mlp(5, [6], 3)), classification(mlp(5, [6], 3))
    last(federated_dropout(sgd(task), task, 0.5), clients, 1, task)
    got = last(federated_dropout(sgd(task), task, 0.5, scale=False), clients, 2, task)
    assert same(got, last(federated_dropout(sgd(fresh), fresh, 0.5, scale=False), clients, 2, fresh))


@pytest.mark.slow
def test_half_of_the_units_learn_as_well_for_half_of_the_bytes() -> None:
    """Digits, 48 clients of Dirichlet 0.3, 10 a round, 40 rounds: FedAvg reaches .92 or so."""

    def run(make: Any) -> tuple[float, float]:
        task, log = classification(mlp(64, [64], 10)), Log()
        made: Algorithm = make(task, sgd(task, epochs=2))
        data = digits(clients=48, partition=dirichlet(0.3))
        result = Federation(task, data, made, policy=synchronous(10), evaluate_every=40).run(40, sinks=[log])
        return result.metrics["accuracy"], sum(e.metrics["bytes_up"] + e.metrics["bytes_down"] for e in log.of("update", "train"))

    (accuracy, sent), (whole, all_sent) = (
        run(lambda task, sgd_: federated_dropout(sgd_, task, 0.5)),
        run(lambda _, sgd_: fedavg(sgd_)),
    )
    assert accuracy > whole - 0.02
    assert sent < 0.53 * all_sent
