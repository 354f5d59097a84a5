"""Workers that compute several clients as one, on a core each, the largest first: nobody is lost who is not to blame."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atoll.algorithms.evaluation import with_evaluation
from atoll.algorithms.fedavg import fedavg
from atoll.data.examples import Tensors
from atoll.engines.cost import Costs
from atoll.engines.order import arrange, early, finishes, grouped, portion
from atoll.engines.processes import Processes, processes
from atoll.engines.shared import Arena, Board, Forms
from atoll.local.binding import binding
from atoll.local.evaluate import evaluate
from atoll.local.sgd import sgd
from atoll.round import work
from atoll.store.memories import Kept
from atoll.testing.engine import check_engine
from atoll.testing.store import same_bits
from atoll.tree import pack
from atoll.types import Answer, Assignment, ClientId, Failure, Local, Seen, Tree, Trip, Update
from tests.algorithms.test_laws import ALGORITHMS, last, some_clients
from tests.core.small import Log, states
from tests.engines.test_engines import hurting, killing, task_of, wearing


class Threes:
    """Three trips at once, one after another; in a worker it insists on what was made ready before the fork."""

    def __init__(self) -> None:
        self.home, self.made = os.getpid(), dict[str, int]()

    def ready(self, trip: Trip) -> int:
        self.made[trip.assignment.work] = os.getpid()
        return 3

    def run(self, trips: Sequence[Trip]) -> Iterator[tuple[Answer, Tree]]:
        assert os.getpid() != self.home, "it runs in the parent"
        assert 1 <= len(trips) <= 3
        assert {trip.assignment.work for trip in trips} == {trips[0].assignment.work}
        assert self.made[trips[0].assignment.work] == self.home, "it was not made ready where it could be inherited"
        for trip in trips:
            yield work(*trip)


class Together(Threes):
    """Three trips as one: no answer before all of them are computed."""

    def run(self, trips: Sequence[Trip]) -> Iterator[tuple[Answer, Tree]]:
        return iter(list(super().run(trips)))


def by(compute: type[Threes], workers: int = 2) -> Callable[..., Any]:
    return lambda locals_, clients, memories: Processes(locals_, clients, memories, 1, compute(), [None] * workers)


NINE = (7, 4, 12, 1, 5, 3, 8, 2, 6)


@pytest.mark.parametrize("workers", [1, 2])
def test_chunks_obey_the_laws_of_an_engine(workers: int) -> None:
    check_engine(by(Threes, workers))


def test_chunks_give_the_bits_of_serial_and_what_is_ready_is_inherited() -> None:
    task, clients = task_of(), some_clients(NINE)
    local, judge = sgd(task, batch_size=4), evaluate(task, split="train")
    algorithm = with_evaluation(fedavg(local), judge, sorted(clients), 2, 4)  # new work after the fork
    want = last(algorithm, clients, 4, task)
    for compute in (Threes, Together):
        assert same_bits(dict(last(algorithm, clients, 4, task, engine=by(compute))), dict(want))


def test_what_is_made_ready_is_shown_a_client_with_examples() -> None:
    shown: list[int] = []

    class Shown(Threes):
        def ready(self, trip: Trip) -> int:
            shown.append(len(trip.examples))
            return super().ready(trip)

    clients = {**some_clients((3, 5)), ClientId("a"): {"train": Tensors({"x": torch.zeros(0, 4), "y": torch.zeros(0).long()})}}
    engine = by(Shown)({"train": sgd(task_of(), batch_size=4)}, clients, Kept())
    try:
        start = pack(binding(task_of().module).state())
        engine.submit([Assignment(0, client, "train", start, 0) for client in sorted(clients)])
        kinds = sorted(type(answer).__name__ for answer in engine.results(60.0))
    finally:
        engine.close()
    assert sorted(clients)[0] == "a"
    assert (kinds, [count > 0 for count in shown]) == (["Failure", "Update", "Update"], [True])


@pytest.mark.parametrize("compute", [Threes, Together])
@pytest.mark.parametrize("client", ["c0", "c1", "c2"])
def test_a_worker_killed_in_mid_chunk_costs_nobody(compute: type[Threes], client: str, tmp_path: Path) -> None:
    task, clients, log = task_of(), some_clients(NINE), Log()
    want = last(fedavg(sgd(task, batch_size=4)), clients, 2, task)
    algorithm = wearing(task, killing(client, tmp_path, times=1))
    assert same_bits(dict(last(algorithm, clients, 2, task, engine=by(compute), log=log)), dict(want))
    assert not log.of("failure")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("compute", [Threes, Together])
@pytest.mark.parametrize(("client", "workers"), [("c0", 1), ("c1", 2), ("c2", 1)])
def test_who_kills_every_worker_is_isolated(compute: type[Threes], client: str, workers: int, tmp_path: Path) -> None:
    """Its neighbours in the chunk are asked again, and answer; it has killed two workers while it was alone."""
    task, clients, log = task_of(), some_clients(NINE), Log()
    states(wearing(task, killing(client, tmp_path, 9)), clients, 1, task, engine=by(compute, workers), log=log)
    assert [(e.client, e.text.partition(":")[0]) for e in log.of("failure")] == [(client, "lost")]
    assert {e.client for e in log.of("update")} == clients.keys() - {client}
    assert len(list(tmp_path.iterdir())) in (2, 3)


def test_two_killers_in_one_chunk_are_both_found(tmp_path: Path) -> None:
    task, clients, log = task_of(), some_clients(NINE), Log()
    for name in ("c0", "c2"):
        (tmp_path / name).mkdir()
    hurts = [killing(name, tmp_path / name, 9) for name in ("c0", "c2")]

    def hurt(assignment: Assignment) -> None:
        for each in hurts:
            each(assignment)

    states(wearing(task, hurt), clients, 1, task, engine=by(Together), log=log)
    assert {e.client for e in log.of("failure")} == {"c0", "c2"}
    assert len(log.of("update")) == 7


@pytest.mark.parametrize(("compute", "hung"), [(Threes, "c1"), (Together, "c0")])
def test_a_client_that_hangs_in_a_chunk_loses_its_own_place_only(compute: type[Threes], hung: str) -> None:
    """Of clients computed as one the first stands for all: when its lease ends, the others are asked again alone."""
    task, clients = task_of(), some_clients(NINE[:3])
    fold = hurting(sgd(task), lambda a: time.sleep(600 if a.client == hung else 0))
    engine = by(compute, 1)({"train": fold}, clients, Kept())
    try:
        asked = [Assignment(0, c, "train", pack(binding(task.module).state()), 1) for c in clients]
        engine.submit(asked)
        heard = [a.client for a in engine.results(2.0)]
        assert [engine.started(a) for a in asked] == [a.client == hung for a in asked]
        engine.refuse(Failure(0, ClientId(hung), "train", "expired", "no answer in 2 s"))
        heard += [a.client for a in engine.results(60.0)]
        assert sorted(heard) == sorted(clients.keys() - {hung})
    finally:
        engine.close()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_gives_in_chunks_the_bits_of_serial(name: str) -> None:
    task, clients, memories, others = task_of(), some_clients((8, 4, 12, 6, 5)), Kept(), Kept()
    alone = last(ALGORITHMS[name](task), clients, 2, task, memories=memories)
    together = last(ALGORITHMS[name](task), clients, 2, task, memories=others, engine=by(Together))
    assert same_bits(dict(alone), dict(together))
    assert all(same_bits(dict(memories.get(c)), dict(others.get(c))) for c in clients)


def test_cancelled_chunks_are_not_answered_and_free_their_memory() -> None:
    task, clients = task_of(), some_clients(NINE)
    local = hurting(sgd(task), lambda a: time.sleep(0.02))
    engine = by(Threes)({"train": local, "other": sgd(task)}, clients, Kept())
    start = pack(binding(task.module).state())
    try:
        engine.submit([Assignment(0, c, "train", start, 1) for c in clients])
        engine.acknowledge(next(engine.results(30.0)))
        engine.cancel(0, "train")
        engine.submit([Assignment(1, c, "other", start, 1) for c in clients])
        found = list(engine.results(30.0))
        assert [(a.round, a.work) for a in found] == [(1, "other")] * 9
        for answer in found:
            engine.refuse(answer)
        assert not engine._replies
        assert not engine._turns
        assert not any(worker.doing for worker in engine._workers)
    finally:
        engine.close()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not pin")
def test_each_worker_is_on_a_core_of_its_own() -> None:
    task, clients, cores = task_of(), some_clients(), os.sched_getaffinity(0)

    def affinities(**options: Any) -> list[set[int]]:
        engine: Any = processes({"train": sgd(task)}, clients, **options)
        try:
            start = pack(binding(task.module).state())
            engine.submit([Assignment(0, c, "train", start, 1) for c in clients])
            for answer in engine.results(30.0):
                engine.refuse(answer)
            return [os.sched_getaffinity(worker.process.pid) for worker in engine._workers]
        finally:
            engine.close()

    assert sorted(min(found) for found in affinities(workers=len(cores))) == sorted(cores)
    assert all(len(found) == 1 for found in affinities(workers=len(cores)))
    assert affinities(workers=len(cores) + 1) == [cores] * (len(cores) + 1)
    assert affinities(workers=1, threads=2) == [cores]
    assert affinities(workers=1, pin=False) == [cores]
    assert os.sched_getaffinity(0) == cores


def telling(pause_s: float) -> Local[Any]:
    """A fold that sleeps so long an example, and tells when it began and in which process."""

    def init(assignment: Assignment, memory: Tree) -> float:
        return time.monotonic()

    def step(carry: float, batch: Tree) -> float:
        time.sleep(pause_s * len(batch["x"]))
        return carry

    def final(a: Assignment, carry: float, seen: Seen) -> tuple[Update, Tree]:
        return Update(a.round, a.client, a.work, {"n": torch.ones(1)}, 1.0, {"began": carry, "pid": float(os.getpid())}), {}

    return Local(init, step, final)


def told(engine: Any, round: int, clients: dict[ClientId, Any]) -> dict[ClientId, Update]:
    engine.submit([Assignment(round, c, "train", {"w": torch.zeros(1)}, 1) for c in clients])
    found = {a.client: a for a in engine.results(60.0) if isinstance(a, Update)}
    for answer in found.values():
        engine.acknowledge(answer)
    return found


def sized(*sizes: int) -> dict[ClientId, Any]:
    return {ClientId(f"c{i}"): {"train": Tensors({"x": torch.ones(n)})} for i, n in enumerate(sizes)}


def test_the_largest_client_goes_first_once_an_examples_cost_is_known() -> None:
    clients = sized(1, 1, 1, 1, 1, 9)
    engine = processes({"train": telling(0.02)}, clients, workers=2)
    try:
        first, second = told(engine, 0, clients), told(engine, 1, clients)
        assert sorted(first, key=lambda c: first[c].metrics["began"]).index(ClientId("c5")) >= 3
        large = second[ClientId("c5")].metrics["began"]
        assert sum(answer.metrics["began"] < large for answer in second.values()) <= 1  # one other worker may be quicker
    finally:
        engine.close()


def test_nobody_waits_behind_a_busy_worker_while_another_is_idle() -> None:
    clients = sized(40, 1, 1)
    engine = processes({"train": telling(0.03)}, clients, workers=2)
    try:
        found = told(engine, 0, clients)
        pids = [found[c].metrics["pid"] for c in clients]
        assert pids[0] != pids[1] == pids[2]
    finally:
        engine.close()


def test_an_update_that_is_not_finite_is_a_failure_wherever_it_is_looked_at() -> None:
    def final(a: Assignment, carry: int, seen: Seen) -> tuple[Update, Tree]:
        return Update(a.round, a.client, a.work, {"w": torch.tensor([1.0, float("nan")])}, 1.0, {}), {"m": torch.ones(1)}

    fold: Local[Any] = Local(lambda a, m: 0, lambda c, b: c, final)
    engine, memories, clients = None, Kept(), sized(1)
    try:
        engine = processes({"train": fold}, clients, memories, workers=1)
        engine.submit([Assignment(0, ClientId("c0"), "train", {}, 1)])
        (answer,) = engine.results(30.0)
        assert isinstance(answer, Failure)
        assert answer.kind == "not_finite"
        engine.refuse(answer)
        assert not memories.get(ClientId("c0"))
    finally:
        if engine is not None:
            engine.close()


COSTS = st.lists(st.floats(0.001, 10.0), min_size=1, max_size=12)


@given(costs=COSTS, workers=st.integers(1, 4), size=st.integers(0, 1 << 31))
def test_another_order_is_taken_only_where_it_ends_sooner(costs: list[float], workers: int, size: int) -> None:
    order = arrange(costs, workers, size)
    given_order = list(range(len(costs)))
    assert sorted(order) == given_order
    ends = finishes(costs, order, workers)
    assert max(ends) >= max(max(costs), sum(costs) / workers) * (1 - 1e-9)
    if order != given_order:
        assert (
            max(ends)
            < 0.95 * max(finishes(costs, given_order, workers)) + early(finishes(costs, given_order, workers)) * size * 1e-9
        )
        assert early(ends) * size <= 1 << 30


@given(count=st.integers(1, 40), workers=st.integers(1, 4))
def test_equals_keep_their_order(count: int, workers: int) -> None:
    assert arrange([0.5] * count, workers) == list(range(count))


@given(ends=st.lists(st.floats(0, 9), max_size=12))
def test_early_is_whoever_has_somebody_slower_before_it(ends: list[float]) -> None:
    assert early(ends) == sum(any(before > end for before in ends[:i]) for i, end in enumerate(ends))


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=20), at_once=st.integers(1, 5))
def test_groups_hold_everybody_once_and_never_pad_more_than_neighbours(sizes: list[int], at_once: int) -> None:
    groups = grouped(sizes, at_once)
    assert sorted(i for group in groups for i in group) == list(range(len(sizes)))
    assert max(map(len, groups)) <= at_once
    given_order = [list(range(i, min(i + at_once, len(sizes)))) for i in range(0, len(sizes), at_once)]

    def padded(way: list[list[int]]) -> int:
        return sum(len(group) * max(sizes[i] for i in group) for group in way)

    assert padded(groups) <= padded(given_order)


@given(costs=COSTS, workers=st.integers(1, 4), within=st.floats(0.001, 5.0))
def test_a_portion_fills_its_time_and_leaves_the_others_theirs(costs: list[float], workers: int, within: float) -> None:
    count = portion(costs, len(costs), workers, within)
    assert 1 <= count <= max(1, -(-len(costs) // (2 * workers)))
    assert count == 1 or sum(costs[:count]) <= within * 1.01


def test_a_client_far_from_its_size_is_judged_by_its_own_times() -> None:
    costs = Costs()
    for _ in range(20):
        costs.learn("train", ClientId("a"), 10.0, 1.0)
    costs.learn("train", ClientId("slow"), 10.0, 9.0)
    by_size, own = costs.seconds("train", ClientId("b"), 10.0), costs.seconds("train", ClientId("slow"), 10.0)
    assert by_size is not None
    assert own is not None
    assert by_size < 2.0 < own
    assert costs.seconds("judge", ClientId("a"), 10.0) is None


def test_an_arena_uses_its_slots_again_and_reads_what_was_written_last() -> None:
    arena, forms, other = Arena(1 << 20), Forms(), Forms()
    first, second = pack({"w": torch.ones(30, 2), "b": torch.zeros(2)}), {"n": torch.tensor(7), "h": torch.ones(3).half()}
    for values in (first, second, first):
        placed = other.hear(forms.tell(arena.write(values)))
        assert same_bits(dict(arena.read(placed)), dict(values))
        assert placed.offset == 0
        arena.free(placed.offset)
    assert len(forms.tell(arena.write(first))) == 2, "a form is told twice"


def test_a_board_writes_a_tree_once_and_keeps_the_newest() -> None:
    board, trees = Board(), [pack({"w": torch.full((4,), float(i))}) for i in range(3)]
    places = [board.post(trees[0], for_many=True) for _ in range(3)]
    assert len({p.offset for p in places}) == 1
    for placed in places:
        board.unpost(placed)
    assert board.post(trees[0], for_many=True) == places[0]
    later = board.post(trees[1], for_many=True)
    board.unpost(places[0])  # nobody reads the old one: its slot is free
    assert board.post(trees[2], for_many=True).offset == places[0].offset
    assert later.offset != places[0].offset
