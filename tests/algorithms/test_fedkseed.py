"""FedKSeed: scalars alone cross the network, and everybody who replays them has the same weights, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from atoll import tree
from atoll.algorithms.fedkseed import State, _drawn, fedkseed, replay
from atoll.data.digits import digits
from atoll.data.examples import Tensors
from atoll.engines.processes import processes
from atoll.errors import ConfigError, RoundError
from atoll.federation import Federation
from atoll.job.build import build
from atoll.job.check import check
from atoll.job.plan import plan
from atoll.job.text import parse
from atoll.local.binding import binding
from atoll.local.directions import Directions, add_, on_grids, sha256
from atoll.local.zeroth_order import INDEX, MEMORY, patch
from atoll.models.mlp import mlp
from atoll.policy import Policy, buffered
from atoll.rng import seeded
from atoll.round import RunState
from atoll.store.memories import Kept
from atoll.tasks.classification import classification
from atoll.testing.local import check_local
from atoll.transforms.compress.int8 import int8
from atoll.transforms.pipe import pipe
from atoll.types import Algorithm, Assignment, ClientId, Local, Task, Update
from tests.core.small import Clients, Log, holding, line, states
from tests.job.digits import JOB

K = 4096


def task_of(dtype: torch.dtype = torch.float32) -> Task:
    with seeded(0):
        return classification(mlp(5, [6], 3).to(dtype))


def some_clients(count: int = 3, dtype: torch.dtype = torch.float32) -> Clients:
    draw = torch.Generator().manual_seed(1)
    sets = [
        Tensors(
            {"x": torch.randn(n, 5, generator=draw).to(dtype), "y": torch.randint(3, (n,), generator=draw)},
        )
        for n in range(6, 6 + count)
    ]
    return {ClientId(f"c{i}"): {"train": each, "test": each} for i, each in enumerate(sets)}


def small(task: Task, **options: Any) -> Algorithm[State]:
    return fedkseed(task, **{"lr": 0.01, "eps": 1e-3, "steps": 6, "batch_size": 4, **options})


def weights_of(task: Task) -> dict[str, torch.Tensor]:
    return {name: x for name, x in binding(task.module).state().items() if name in binding(task.module).params}


def witnessed(algorithm: Algorithm[State], task: Task) -> tuple[Algorithm[State], list[tuple[int, str, str]]]:
    """The algorithm with a look at the weights that each client's module holds when its work begins."""
    local, seen = algorithm.local["train"], list[tuple[int, str, str]]()

    def init(assignment: Assignment, memory: tree.Tree) -> Any:
        carry = local.init(assignment, memory)
        seen.append((assignment.round, assignment.client, sha256(dict(task.module.named_parameters()))))
        return carry

    watched: Local[Any] = local._replace(init=init)
    return algorithm._replace(local={"train": watched}), seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("draw", ["gaussian", "rademacher"])
def test_server_clients_and_a_newcomer_have_the_same_weights(dtype: torch.dtype, draw: Any) -> None:
    task, clients = task_of(dtype), some_clients(dtype=dtype)
    algorithm, seen = witnessed(small(task, draw=draw, seed=3), task)
    runs = states(algorithm, clients, 4, task)
    w0 = weights_of(task)
    at_server = [sha256({name: algorithm.params(s.algorithm)[name] for name in w0}) for s in runs]
    assert len(set(at_server)) == 4, "the weights did not move"
    assert [digest for round, _, digest in seen if round > 0] == [at_server[round - 1] for round, _, _ in seen if round > 0]
    for state, digest in zip(runs, at_server, strict=True):
        assert sha256(replay(w0, state.algorithm.g, Directions(K, 3, draw), 0.01)) == digest
    assert all(x.dtype == dtype for x in algorithm.params(runs[-1].algorithm).values())


def test_what_it_says_is_what_it_does() -> None:
    """The definition in double precision: w0 - lr sum_j G_j z_j, up to half a step of the grid for each j and for w0."""
    task = task_of()
    state = states(small(task, lr=0.05), some_clients(), 3, task)[-1].algorithm
    w0, directions = weights_of(task), Directions(K)
    tried = state.g.nonzero()[:, 0].tolist()
    for name, x in w0.items():
        want = x.double()
        for j in tried:
            unit = on_grids({name: torch.zeros_like(x)})
            add_(unit, directions, j, (1, 0.5))
            want = want - 0.05 * float(state.g[j]) * 2 * unit[name].values.double()
        step = on_grids({name: x})[name].step
        slack = (len(tried) + 1) * step  # z itself is rounded to a grid here
        assert float((state.params[name].double() - want).abs().max()) <= slack * (1 + 0.05 * float(state.g.abs().max()))


def test_by_hand_one_weight() -> None:
    """F(w) = (w - Y)^2 / 2 has the slope (w - Y) z along z, whatever eps; with signs, one step is w -= lr (w - Y) z^2."""
    task = line()
    algorithm = fedkseed(task, lr=0.5, eps=0.25, steps=1, batch_size=8, draw="rademacher")
    runs = states(algorithm, holding(a=[1.0], b=[5.0, 5.0, 5.0]), 2, task)
    # a: g z = 0 - 1, b: g z = 0 - 5 of 3 examples, so that w = .5 (1 + 15) / 4 = 2; then .5 ((1 - 2) + 3 (5 - 2)) / 4 more
    values = [float(algorithm.params(s.algorithm)["weight"].detach()) for s in runs]
    assert values == pytest.approx([2.0, 3.0], abs=1e-5)


def test_clients_are_weighed_by_their_examples() -> None:
    """As above: unweighted, the first step would be .5 (1 + 5) / 2 = 1.5."""
    task = line()
    algorithm = fedkseed(task, lr=0.5, eps=0.25, steps=1, batch_size=8, draw="rademacher")
    state = states(algorithm, holding(a=[1.0], b=[5.0, 5.0, 5.0]), 1, task)[0].algorithm
    assert float(state.g.abs().sum()) == pytest.approx(4.0, abs=1e-4) or len(state.g.nonzero()) == 1


@pytest.mark.parametrize("pro", [False, True])
def test_processes_give_the_bits_of_serial(pro: bool) -> None:
    task, clients, memories, others = task_of(), some_clients(4), Kept(), Kept()
    algorithm = small(task, pro=pro)
    alone = states(algorithm, clients, 4, task, memories=memories)[-1].algorithm
    together = states(algorithm, clients, 4, task, memories=others, engine=processes, workers=2)[-1].algorithm
    assert sha256(alone.params) == sha256(together.params)
    assert torch.equal(alone.g, together.g)
    for client in clients:
        assert torch.equal(memories.get(client)[MEMORY], others.get(client)[MEMORY])


@pytest.mark.parametrize("compute", ["traced", "stacked"])
def test_other_ways_to_compute_give_the_same_bits(compute: str) -> None:
    task, clients = task_of(), some_clients(4)
    algorithm = small(task)
    eager = states(algorithm, clients, 3, task)[-1].algorithm
    assert sha256(eager.params) == sha256(states(algorithm, clients, 3, task, compute=compute)[-1].algorithm.params)


def test_clients_whose_steps_alternate_do_not_see_each_other() -> None:
    """They use one copy of the model in turn: what one has added is off it when the other looks."""
    task, clients = task_of(), some_clients(2)
    algorithm = small(task)
    local, state = algorithm.local["train"], states(algorithm, clients, 1, task)[-1].algorithm
    sent = {c: Assignment(1, c, "train", patch(state.g, None, state.base), i) for i, c in enumerate(clients)}
    read = {c: [clients[c]["train"].take(torch.tensor([k])) for k in range(6)] for c in clients}

    def worked(order: list[tuple[ClientId, int]]) -> list[list[tuple[int, float]]]:
        carries = {c: local.init(sent[c], {}) for c in clients}
        for client, k in order:
            carries[client] = local.step(carries[client], read[client][k])
        return [carries[c].taken for c in clients]

    a, b = clients
    in_turn = [(c, k) for c in (a, b) for k in range(6)]
    alternating = [(c, k) for k in range(6) for c in (b, a)]
    assert worked(in_turn) == worked(alternating)


def test_codecs_are_refused_where_there_is_nothing_to_make_smaller() -> None:
    with pytest.raises(ConfigError, match="a few scalars"):
        pipe(small(task_of()), int8())


def test_the_plan_says_no_less_than_a_run_sends() -> None:
    sets = ['algorithm={name="fedkseed", lr=0.01, steps=20, candidates=64}']
    job = check(parse(JOB.replace('[local]\nname = "sgd"\nbatch_size = 64\n', ""), overrides=sets))
    planned = plan(job)
    assert (planned.down_bytes, planned.up_bytes) == (4 * 64 + 2 * 20, 6 * 20)
    log = Log()
    build(job).run(job.rounds, sinks=[log])
    updates = log.of("update", "train")
    assert len(updates) == 3 * 4
    for sent in (event.metrics for event in updates):
        assert sent["bytes_up"] - sent["header_up"] <= planned.up_bytes
        assert sent["bytes_down"] - sent["header_down"] <= planned.down_bytes


def test_the_law_kit() -> None:
    task, clients = task_of(), some_clients(1)
    algorithm = small(task)
    state = states(algorithm, clients, 2, task)[-1].algorithm
    check_local(algorithm.local["train"], clients[ClientId("c0")]["train"], patch(state.g, None, state.base))


@pytest.mark.slow
def test_both_directions_fit_in_18_kilobytes_at_4096_candidates() -> None:
    """At the paper's 200 steps, with every one of the 4,096 entries of G in use, header included."""
    task, log, lr = line(), Log(), 1e-4
    full = torch.randn(K, generator=torch.Generator().manual_seed(0))
    algorithm = fedkseed(task, lr=lr, eps=1e-3, steps=200)
    first = algorithm.init(binding(task.module).state())
    late = first._replace(g=full, changed=first.changed + 1, params=replay(weights_of(task), full, Directions(K), lr))
    run = states(algorithm, holding(a=[1.0], b=[5.0]), 3, state=RunState(0, late), log=log)
    last = run[-1].algorithm
    assert sha256(last.params) == sha256(replay(weights_of(task), last.g, Directions(K), lr))
    for event in log.of("update"):
        assert event.metrics["bytes_down"] + event.metrics["bytes_up"] <= 18_000
        assert (event.metrics["bytes_down"] > 16_384) == (event.round == 0), "later only what changed is sent"


def test_a_client_that_has_forgotten_is_sent_all_of_it_the_next_time() -> None:
    task, clients, log, memories = task_of(), some_clients(3), Log(), Kept()
    algorithm = small(task)
    runs = states(algorithm, clients, 2, task, memories=memories)
    bare = Kept()
    for client in ("c0", "c1"):  # c2 has lost its disk
        bare.propose(ClientId(client), 0, "train", memories.get(ClientId(client)))
        bare.commit(ClientId(client), 0, "train")
    runs = states(algorithm, clients, 4, state=runs[-1], memories=bare, log=log, policy=Policy(min_updates=2))
    failed = [(e.round, e.client) for e in log.of("failure")]
    assert failed == [(2, "c2")]
    assert sorted((e.round, e.client) for e in log.of("update")) == [(2, "c0"), (2, "c1"), (3, "c0"), (3, "c1"), (3, "c2")]


def test_an_update_that_is_none_is_refused_and_the_round_lives_on() -> None:
    task, clients, log = task_of(), some_clients(4), Log()
    algorithm = small(task)
    local = algorithm.local["train"]
    wrong = {
        "c1": {"at": torch.tensor([K], dtype=INDEX), "h": torch.ones(1)},
        "c2": {"at": torch.tensor([-1], dtype=INDEX), "h": torch.ones(1)},
        "c3": {"at": torch.zeros(7, dtype=INDEX), "h": torch.ones(7)},
    }

    def final(assignment: Assignment, carry: Any, seen: Any) -> tuple[Update, tree.Tree]:
        update, memory = local.final(assignment, carry, seen)
        return update._replace(tree=wrong.get(assignment.client, update.tree)), memory

    spoiled = algorithm._replace(local={"train": local._replace(final=final)})
    states(spoiled, clients, 1, task, log=log, policy=Policy(min_updates=1))
    assert sorted(e.client for e in log.of("failure")) == ["c1", "c2", "c3"]


def test_other_first_weights_are_refused() -> None:
    task = task_of()
    algorithm = small(task)
    others = {name: x + 1 for name, x in binding(task.module).state().items()}
    with pytest.raises(ConfigError, match="use one job file"):
        states(algorithm, some_clients(), 1, task, state=RunState(0, algorithm.init(others)))


def test_a_loss_that_is_no_number_is_that_clients_failure_and_spoils_nothing() -> None:
    task, clients, log = task_of(), some_clients(3), Log()
    bad = {**clients, ClientId("bad"): {"train": Tensors({"x": torch.full((4, 5), float("nan")), "y": torch.zeros(4).long()})}}
    algorithm = small(task)
    with_it = states(algorithm, bad, 2, task, log=log, policy=Policy(min_updates=3))[-1].algorithm
    assert {e.client for e in log.of("failure")} == {"bad"}
    assert sha256(replay(weights_of(task), with_it.g, Directions(K), 0.01)) == sha256(with_it.params)


def test_weights_that_leave_their_grid_are_said_and_not_rounded() -> None:
    task, clients, log = task_of(), some_clients(2), Log()
    with pytest.raises(RoundError, match="lower fedkseed's lr"):
        states(small(task, lr=1e6), clients, 2, task, log=log)


def test_in_buffered_runs_a_client_is_sent_what_changed_since_it_was_last_asked() -> None:
    task, clients, log = task_of(), some_clients(5), Log()
    algorithm, seen = witnessed(small(task), task)
    runs = states(algorithm, clients, 12, task, policy=buffered(4, buffer=2), log=log)
    assert not log.of("failure")
    at_server = [sha256(s.algorithm.params) for s in runs]
    assert all(digest == at_server[round - 1] for round, _, digest in seen if round > 0)


def test_pro_asks_for_what_has_moved_the_loss_most() -> None:
    """softmax(minmax(a)) gives the largest e times the chance of the smallest."""
    task = task_of()
    state = small(task, pro=True, candidates=4).init(binding(task.module).state())
    state = state._replace(size=torch.tensor([0.0, 2.0, 8.0, 0.0]), times=torch.tensor([1.0, 2.0, 4.0, 0.0]))
    drawn = _drawn(state, ClientId("a"), 0, 200_000)
    chances = np.exp([0.0, 0.5, 1.0, 0.0])
    assert torch.bincount(drawn, minlength=4).numpy() / 200_000 == pytest.approx(chances / chances.sum(), abs=5e-3)


@pytest.mark.parametrize("pro", [False, True])
def test_it_trains(pro: bool) -> None:
    task = classification(mlp(64, [], 10))
    algorithm = fedkseed(task, lr=0.05, eps=1e-3, steps=40, batch_size=32, candidates=1024, pro=pro)
    result = Federation(task, digits(clients=2), algorithm).run(rounds=6)
    losses = [value for _, value in result.history()]
    assert losses[-1] < 0.7 * losses[0], losses
    assert result.metrics["accuracy"] > 0.5


def test_a_second_run_goes_on_from_what_the_module_holds_by_then() -> None:
    task = classification(mlp(64, [], 10))
    federation = Federation(task, digits(clients=2), fedkseed(task, lr=0.05, eps=1e-3, steps=5, batch_size=32))
    first = federation.run(rounds=1)
    first.module()  # puts what was trained into the module
    began = first.history()[-1][1]
    assert federation.run(rounds=1).history("baseline")[0][1] == pytest.approx(began, rel=1e-5)


def test_forward_passes_in_bf16_tune_float32_weights() -> None:
    task, clients = task_of(), some_clients()
    plain, narrow = (states(small(task, eps=0.05, precision=p), clients, 2, task)[-1].algorithm for p in ("fp32", "bf16"))
    assert all(x.dtype == torch.float32 for x in narrow.params.values())
    assert not torch.equal(plain.g, narrow.g)
    tried = plain.g != 0
    assert torch.equal(tried, narrow.g != 0)
    assert float((plain.g - narrow.g).norm() / plain.g.norm()) < 0.3


def test_settings_out_of_range_are_refused() -> None:
    for options in ({"lr": 0.0}, {"eps": -1.0}, {"candidates": 0}, {"candidates": 2**16}, {"steps": 0}):
        with pytest.raises(ConfigError):
            small(task_of(), **options)
    with pytest.raises(ConfigError, match="draw"):
        small(task_of(), draw="uniform")
