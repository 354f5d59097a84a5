"""algorithms/feddst.py against FedAvg, against numbers worked out on paper, and on frames."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from atoll.algorithms import masks
from atoll.algorithms.fedavg import fedavg
from atoll.algorithms.feddst import exchanged, feddst
from atoll.data.digits import digits
from atoll.data.examples import Tensors
from atoll.data.partition.dirichlet import dirichlet
from atoll.engines.processes import processes
from atoll.engines.stacked import stacked
from atoll.engines.traced import traced
from atoll.errors import ConfigError, TreeError
from atoll.federation import Federation
from atoll.local.adamw import adamw
from atoll.local.binding import binding
from atoll.local.script import script
from atoll.local.sgd import sgd
from atoll.models import sparsity
from atoll.models.cnn import cnn
from atoll.models.mlp import mlp
from atoll.policy import buffered, synchronous
from atoll.round import RunState
from atoll.store import state as store_state
from atoll.store.memories import Kept
from atoll.tasks.classification import classification
from atoll.tasks.custom import custom
from atoll.testing.local import check_local
from atoll.testing.store import same_bits
from atoll.transforms.compress.int8 import int8
from atoll.transforms.pipe import pipe
from atoll.types import Assignment, ClientId, Task, Update
from tests.algorithms.test_federated_dropout import images
from tests.algorithms.test_laws import close, last, normed_task, same, some_clients
from tests.core.small import Clients, Log, half_squared, states


@pytest.mark.parametrize("weights", ["examples", "uniform"])
def test_a_density_of_one_is_fedavg(weights: Any) -> None:
    for task, clients in ((classification(mlp(5, [6], 3)), some_clients()), (normed_task(), some_clients((7, 4, 12, 2)))):
        local = sgd(task, batch_size=4, epochs=2, momentum=0.5, weight_decay=0.01)
        got = last(feddst(local, task, 1.0, every=1, weights=weights), clients, 3, task)
        assert same(got, last(fedavg(local, weights=weights), clients, 3, task))
    task = classification(cnn(1, 6, [3], 3, 5, 3))
    local = adamw(task, batch_size=2)
    assert same(last(feddst(local, task, 1.0), images(), 2, task), last(fedavg(local), images(), 2, task))


def sum_of(*w: float) -> Task:
    """The model w . x, without a bias."""
    module = nn.Linear(len(w), 1, bias=False)
    module.weight.data.copy_(torch.tensor([w]))
    return custom(module, half_squared)


def test_two_weights_by_hand() -> None:
    """w = (2, -1, .5) keeps its largest, 2. a: x = (1, 1, 3), y = 4; b, thrice: x = (1, 2, 1), y = 6; lr 1/4.

    The kept weight goes by lr (y - 2): .5 at a, 1 at b; by examples (1 * .5 + 3 * 1) / 4 = .875.
    """
    task = sum_of(2.0, -1.0, 0.5)
    x = {"a": [[1.0, 1.0, 3.0]], "b": [[1.0, 2.0, 1.0]] * 3}
    y = {"a": [4.0], "b": [6.0] * 3}
    clients: Clients = {ClientId(c): {"train": Tensors({"x": torch.tensor(x[c]), "y": torch.tensor(y[c])})} for c in x}
    algorithm = feddst(sgd(task, 0.25, None), task, density=1 / 3, every=1, exchange=0.9)
    state = states(algorithm, clients, 1, task)[0].algorithm
    # The one kept is exchanged (.9 of 1 is 1). At 2.875 the errors are -1.125 and -3.125. Of what is pruned a's largest
    # gradient is -3.375, of the third weight; b's is -6.25, of the second: mean (3 * -6.25) / 4 against -3.375 / 4.
    assert state.mask["weight"].tolist() == [[False, True, False]]
    assert state.params["weight"].tolist() == [[0.0, 0.0, 0.0]]
    kept = feddst(sgd(task, 0.25, None), task, density=1 / 3, every=2, exchange=0.9)
    assert states(kept, clients, 1, task)[0].algorithm.params["weight"].tolist() == [[2.875, 0.0, 0.0]]


def test_densities_are_those_of_the_paper() -> None:
    """Two layers of 4 x 4 and 16 x 4 at 1/4: 20 entries, in proportion to 4 + 4 and 16 + 4."""
    found = sparsity.densities({"a": (4, 4), "b": (16, 4)}, 0.25)
    assert found == pytest.approx({"a": 20 * 8 / 28 / 16, "b": 20 * 20 / 28 / 64})
    # a small layer would be above 1 and stays dense; what it does not take goes to the others
    found = sparsity.densities({"a": (2, 2), "b": (50, 50)}, 0.5)
    assert found == pytest.approx({"a": 1.0, "b": (0.5 * 2504 - 4) / 2500})
    assert sparsity.densities({"a": (2, 2), "b": (50, 50)}, 0.5, "uniform") == {"a": 0.5, "b": 0.5}


@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6),
    density=st.floats(0.01, 1.0),
)
def test_densities_keep_what_was_asked_for(sizes: list[tuple[int, int]], density: float) -> None:
    shapes = {str(i): size for i, size in enumerate(sizes)}
    found = sparsity.densities(shapes, density)
    assert all(0 < share <= 1 + 1e-9 for share in found.values())
    assert sum(found[n] * math.prod(s) for n, s in shapes.items()) == pytest.approx(density * sum(map(math.prod, sizes)))


@given(seed=st.integers(0, 1000), share=st.floats(0.0, 1.0))
def test_masks_and_values_come_back(seed: int, share: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    values = {
        "a": torch.randn(5, 3, generator=draw),
        "b": torch.randn(5, generator=draw),
        "c": torch.randn(2, 3, 2, generator=draw),
    }
    mask = {n: torch.rand(values[n].shape, generator=draw) < share for n in ("a", "c")}
    found = masks.read(masks.written(mask), {"a": 2, "c": 3})
    assert all(torch.equal(found[n], mask[n]) for n in mask)
    thin = masks.thin(values, mask)
    assert sum(x.numel() for x in thin.values()) == 5 + sum(int(m.sum()) for m in mask.values())
    for name, x in masks.fill(thin, mask).items():
        assert torch.equal(x, values[name] * mask[name] if name in mask else values[name])


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(TreeError, match="w has 2 entries, and its mask keeps 1"):
        masks.fill({"w": torch.ones(2)}, {"w": torch.tensor([[True, False]])})


def test_an_exchange_keeps_the_density_and_grows_only_where_there_is_a_gradient() -> None:
    mask = {"w": torch.tensor([True, True, True, False, False, False])}
    w, g = {"w": torch.tensor([3.0, 0.0, 1e-9, 0.0, 0.0, 0.0])}, {"w": torch.tensor([9.0, 9.0, 9.0, 0.0, 0.1, 0.0])}
    assert exchanged(w, mask, g, {"w": 2})["w"].tolist() == [True, False, True, False, True, False]
    assert exchanged(w, mask, g, {"w": 0})["w"].tolist() == mask["w"].tolist()


def test_pruned_entries_are_zero_and_every_round_has_the_density() -> None:
    task, clients = classification(mlp(5, [16, 8], 3)), some_clients()
    for local in (sgd(task, batch_size=4, momentum=0.9, weight_decay=0.1), adamw(task, lr=0.01, batch_size=4)):
        algorithm = feddst(local, task, 0.4, every=2, exchange=0.3)
        count = sum(sparsity.counts({n: p.shape for n, p in task.module.named_parameters() if p.dim() > 1}, 0.4).values())
        before, moved = None, 0
        for after in states(algorithm, clients, 6, task):
            state = after.algorithm
            assert sum(int(m.sum()) for m in state.mask.values()) == count
            assert all(not state.params[n][~m].any() for n, m in state.mask.items())
            if before is not None:
                moved += sum(int((m & ~before[n]).sum()) for n, m in state.mask.items())
                assert (state.since == state.round) == any(not torch.equal(m, before[n]) for n, m in state.mask.items())
            before = {n: m.clone() for n, m in state.mask.items()}
        assert moved > 0


def test_bytes_on_frames_are_those_of_what_is_kept() -> None:
    task, clients = classification(mlp(64, [32], 10)), some_clients(inputs=64)
    algorithm, log = feddst(sgd(task), task, 0.2, every=2, exchange=0.25, shrink=False), Log()
    states(algorithm, clients, 4, task, log=log)
    kept = sparsity.counts({"hidden1.weight": (32, 64), "output.weight": (10, 32)}, 0.2)
    values = 4 * (sum(kept.values()) + 42)
    bitmap = (32 * 64 + 10 * 32) // 8 + 4 * 4
    for k, event in enumerate(log.of("update", "train")):
        m = event.metrics
        assert m["bytes_up"] - m["header_up"] == values
        new = k // len(clients) in (0, 2)  # the first round, and the one after the mask was changed; it changes at the end, too
        assert m["bytes_down"] - m["header_down"] == values + 4 + new * bitmap
    grown = sum(round(0.25 * n) for n in kept.values())
    assert len(log.of("update", "grow")) == 2 * len(clients)
    for event in log.of("update", "grow"):
        m = event.metrics
        assert m["bytes_down"] - m["header_down"] == values + bitmap + 2 * 8
        assert m["bytes_up"] - m["header_up"] == 8 * grown


def test_dead_units_are_neither_sent_nor_computed() -> None:
    """At 3 % most hidden units are read by nobody: the same model, up to rounding, out of less."""
    task, clients = classification(mlp(20, [64, 64], 3)), some_clients(inputs=20)
    small, whole = (feddst(sgd(task, batch_size=4), task, 0.03, every=2, shrink=shrink) for shrink in (True, False))
    close(last(small, clients, 4, task), last(whole, clients, 4, task), 1e-5)
    flops, sent = {}, {}
    for name, algorithm in (("small", small), ("whole", whole)):
        state = algorithm.init(binding(task.module).state())
        request = next(algorithm.round(state, list(clients)))
        tree = request.tree_for(ClientId("c0"))
        sent[name] = sum(x.numel() for n, x in tree.items() if "/" not in n)
        carry = algorithm.local["train"].init(Assignment(0, ClientId("c0"), "train", tree, 0), {})
        with FlopCounterMode(display=False) as counter:
            algorithm.local["train"].step(carry, {"x": torch.randn(8, 20), "y": torch.zeros(8, dtype=torch.int64)})
        flops[name] = counter.get_total_flops()
    assert flops["small"] < 0.4 * flops["whole"]
    assert sent["small"] < 0.8 * sent["whole"]


def test_engines_agree() -> None:
    task, clients = classification(mlp(5, [12, 6], 3)), some_clients()
    algorithm = feddst(sgd(task, batch_size=4, epochs=3), task, 0.3, every=2, exchange=0.3)
    want = last(algorithm, clients, 4, task)
    assert same(last(algorithm, clients, 4, task, engine=processes, workers=2), want)
    close(last(algorithm, clients, 4, task, engine=traced), want, 1e-5)
    close(last(algorithm, clients, 4, task, engine=stacked, chunk=2), want, 1e-5)


def test_a_masked_step_is_captured() -> None:
    task, clients = classification(mlp(5, [12, 6], 3)), some_clients()
    algorithm = feddst(sgd(task, batch_size=4, momentum=0.5), task, 0.3)
    request = next(algorithm.round(algorithm.init(binding(task.module).state()), list(clients)))
    check_local(algorithm.local["train"], clients[ClientId("c0")]["train"], request.tree_for(ClientId("c0")), captures=True)


def test_masks_survive_a_resume(tmp_path: Path) -> None:
    task, clients, kept = classification(mlp(5, [12], 3)), some_clients(), Kept()
    algorithm = feddst(sgd(task, batch_size=4), task, 0.3, every=3, exchange=0.3)
    policy = synchronous(2)
    whole = states(algorithm, clients, 8, task, policy=policy)
    halfway = states(algorithm, clients, 5, task, policy=policy, memories=kept)[-1]
    store_state.save(halfway, tmp_path / "state")
    again = store_state.load(RunState(0, algorithm.init(binding(task.module).state())), tmp_path / "state")
    log = Log()
    got = states(algorithm, clients, 8, task, policy=policy, memories=kept, state=again, log=log)[-1]
    assert same_bits(got.algorithm, whole[-1].algorithm)
    assert not log.of("failure")


def test_who_forgot_the_mask_fails_once_and_is_sent_it_again() -> None:
    task, clients, log = classification(mlp(5, [12], 3)), some_clients((4,) * 6), Log()
    algorithm = feddst(sgd(task, batch_size=4), task, 0.3, every=100)

    class Forgetful(Kept):
        def get(self, client: ClientId) -> Any:
            return {} if client == "c1" and len(log.of("round")) == 3 else super().get(client)

    states(algorithm, clients, 8, task, memories=Forgetful(), log=log)
    failures = log.of("failure")
    assert [(event.client, event.round) for event in failures] == [("c1", 3)]
    assert "is not remembered here" in failures[0].text


def test_an_update_under_an_earlier_mask_is_refused() -> None:
    task, clients, log = classification(mlp(5, [12], 3)), some_clients((4,) * 8), Log()
    algorithm = feddst(sgd(task, batch_size=4), task, 0.3, every=2, exchange=0.5)
    states(algorithm, clients, 9, task, policy=buffered(clients_in_flight=4, buffer=2), log=log)
    assert log.of("failure")
    assert all("the mask is another since" in event.text for event in log.of("failure"))
    assert max(event.metrics["age"] for event in log.of("update", "train")) > 0, "one round late and the mask the same"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: {n: x for n, x in t.items() if n != "at/weight"},
        lambda t: {**t, "at/weight": t["at/weight"].long()},
        lambda t: {**t, "at/weight": torch.tensor([99], dtype=torch.int32)},
        lambda t: {**t, "at/weight": torch.tensor([-1], dtype=torch.int32)},
        lambda t: {**t, "of/weight": torch.zeros(2)},
    ],
)
def test_gradients_of_another_form_are_refused(spoil: Any) -> None:
    mask = {"weight": torch.tensor([[True, False, False]])}
    good = {"at/weight": torch.tensor([2], dtype=torch.int32), "of/weight": torch.tensor([-0.5])}
    update = Update(0, ClientId("a"), "grow", good, 1.0, {})
    assert masks.grown(update, mask, {"weight": 1}).tree["weight"].tolist() == [[0.0, 0.0, -0.5]]
    with pytest.raises(TreeError, match="the gradient of weight"):
        masks.grown(update._replace(tree=spoil(good)), mask, {"weight": 1})


def test_codecs_attach() -> None:
    task, clients, log = classification(mlp(5, [16], 3)), some_clients(), Log()
    inner = feddst(sgd(task, batch_size=4), task, 0.4, every=2)
    close(last(pipe(inner, int8()), clients, 2, task, log=log), last(inner, clients, 2, task), 0.02)
    assert not log.of("failure")


def test_refusals() -> None:
    task = classification(mlp(5, [6], 3))
    for wrong in ({"density": 0.0}, {"density": 1.5}, {"exchange": 1.0}, {"every": 0}):
        with pytest.raises(ConfigError, match=r"must be in \(0, 1\], in \[0, 1\), and 1 round or more"):
            feddst(sgd(task), task, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="which this local work hides"):
        feddst(script(task, lambda module, loader: None), task)


@pytest.mark.slow
def test_a_fifth_of_the_weights_learns_nearly_as_well_and_growing_helps() -> None:
    """Digits, 48 clients of Dirichlet 0.3, 10 a round, 40 rounds: FedAvg reaches .92 or so."""

    def run(make: Any) -> tuple[float, float]:
        task, log = classification(mlp(64, [100], 10)), Log()
        data = digits(clients=48, partition=dirichlet(0.3))
        made = make(task, sgd(task, lr=0.3, epochs=2))
        result = Federation(task, data, made, policy=synchronous(10), evaluate_every=40).run(40, sinks=[log])
        sent = sum(e.metrics["bytes_up"] + e.metrics["bytes_down"] for e in log.of("update") if e.work in ("train", "grow"))
        return result.metrics["accuracy"], sent

    whole, all_sent = run(lambda _, local: fedavg(local))
    sparse, sent = run(lambda task, local: feddst(local, task, 0.2))
    assert sparse > whole - 0.03
    assert sent < 0.25 * all_sent
    growing, fixed = (run(lambda task, local, e=e: feddst(local, task, 0.1, exchange=e))[0] for e in (0.2, 0.0))
    assert growing > fixed + 0.05
