"""What a client puts together is what the server holds, bit for bit, whoever takes part, fails, comes late or is resumed."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from atoll import tree
from atoll.algorithms.fedasync import fedasync
from atoll.algorithms.fedavg import fedavg, fedavgm
from atoll.algorithms.scaffold import scaffold
from atoll.data.digits import digits
from atoll.engines.processes import processes
from atoll.engines.ray import ray
from atoll.engines.serial import serial
from atoll.engines.stacked import stacked
from atoll.engines.virtual import Virtual
from atoll.errors import ConfigError, RoundError
from atoll.federation import Federation
from atoll.fleets.steady import lognormal
from atoll.local.sgd import sgd
from atoll.models.mlp import mlp
from atoll.policy import Policy, buffered, over_selecting, synchronous
from atoll.store.memories import Kept
from atoll.tasks.classification import classification
from atoll.testing.store import same_bits
from atoll.transforms import differences
from atoll.transforms.broadcast import PATIENCE, with_broadcast
from atoll.transforms.clip import clip
from atoll.transforms.compress.cast import cast
from atoll.transforms.compress.eden import eden
from atoll.transforms.compress.int8 import int8
from atoll.transforms.compress.xor import xor
from atoll.transforms.pipe import pipe
from atoll.types import Algorithm, Assignment, ClientId, Event, Reduced, Request, Task, Transform, Tree
from tests.algorithms.test_laws import last, normed_task, small_task, some_clients
from tests.core.small import Log, states
from tests.core.stopping import stopped

CLIENTS = some_clients((7, 4, 12, 3, 5, 6))
CODECS: dict[str, Transform[Any]] = {"int8": int8(block=32), "cast": cast("bf16"), "xor": xor(), "eden": eden(bits=4)}
POLICIES = {
    "all": synchronous(),
    "some": synchronous(3),
    "more than wanted": over_selecting(3, 1.6),
    "buffered": buffered(3, buffer=2),
}


def virtual(locals_: Any, clients: Any, memories: Any) -> Virtual:
    """Late clients have computed by the time that they are refused."""
    return Virtual(serial(locals_, clients, memories), locals_, clients, lognormal(sigma=1.5, down=1e4, up=1e4))


class Watched:
    """An algorithm under `with_broadcast` that notes from what model each client trains, and what it was told."""

    def __init__(self, inner: Algorithm[Any], codec: Transform[Any], broken: Any = ()) -> None:
        self.models: dict[tuple[int, str], Tree] = {}
        self.told: dict[tuple[int, str], differences.Told] = {}
        local = inner.local["train"]

        def within(assignment: Assignment, memory: Tree) -> Any:
            assert not any(name.startswith("~") for name in (*assignment.tree, *memory)), "a corner that is not the algorithm's"
            place = (assignment.round, str(assignment.client))
            self.models[place] = {name: x.clone() for name, x in assignment.tree.items()}
            if place in broken:
                raise ValueError("broken")
            return local.init(assignment, memory)

        outer = with_broadcast(inner._replace(local={"train": local._replace(init=within)}), codec)
        worn = outer.local["train"]

        def without(assignment: Assignment, memory: Tree) -> Any:
            told = differences.Told(*assignment.tree[differences.MARK + "told"].tolist())
            self.told[assignment.round, str(assignment.client)] = told
            return worn.init(assignment, memory)

        self.algorithm = outer._replace(local={"train": worn._replace(init=without)})


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 999), broken=st.sets(st.tuples(st.integers(0, 7), st.sampled_from(sorted(CLIENTS))), max_size=12))
@pytest.mark.parametrize("codec", ["int8", "xor"])
def test_a_client_puts_together_what_the_server_holds(policy: str, codec: str, seed: int, broken: Any) -> None:
    task = small_task()
    watched = Watched(fedavgm(sgd(task, lr=0.1, batch_size=4)), CODECS[codec], broken)
    try:
        after = states(watched.algorithm, CLIENTS, 8, task, POLICIES[policy], virtual, seed)
    except RoundError:
        assume(False)  # everybody was broken
    for (round, client), model in watched.models.items():
        public = dict(after[round].algorithm.public)
        assert same_bits(model, public), f"{client} trained in round {round} from something else"
        assert watched.told[round, client].version == round + 1
    assert any(told.steps for told in watched.told.values()), "nobody was ever sent a step"


@pytest.mark.parametrize("codec", CODECS)
def test_lossless_is_the_run_without_and_lossy_stays_near(codec: str) -> None:
    task = small_task()
    algorithm = fedavgm(sgd(task, lr=0.1, batch_size=4))
    plain, got = (last(a, CLIENTS, 6, task) for a in (algorithm, with_broadcast(algorithm, CODECS[codec])))
    if codec == "xor":
        assert same_bits(dict(got), dict(plain))
    off = tree.norm(tree.sub(got, plain)) / tree.norm(plain)
    assert (off == 0) == (codec == "xor")
    assert off < 0.1


def test_errors_do_not_add_up() -> None:
    """Each step contains what the last one left out: after ten steps towards a model that stands still, nothing is left."""
    draw = torch.Generator().manual_seed(0)
    old: Tree = tree.pack({"w": torch.randn(300, generator=draw)})
    new: Tree = tree.pack({"w": torch.randn(300, generator=draw)})
    for seed in range(10):
        _, old = differences.step(int8(), new, old, seed)
    assert tree.norm(tree.sub(old, new)) < 1e-6 * tree.norm(new)


@pytest.mark.parametrize("make", [scaffold, fedasync, None])
def test_the_bits_of_serial_in_processes_and_stacked(make: Any) -> None:
    task = small_task() if make else normed_task()  # whose batch counter is an integer, and is sent beside the steps
    local = sgd(task, lr=0.1, batch_size=4 if make else None, epochs=2)
    inner = scaffold(local, population=6) if make is scaffold else (make or fedavg)(local)
    algorithm = with_broadcast(pipe(inner, int8()), CODECS["int8"])
    want = last(algorithm, CLIENTS, 4, task, policy=synchronous(4))
    assert same_bits(dict(want), dict(last(algorithm, CLIENTS, 4, task, policy=synchronous(4), engine=processes, workers=2)))
    near = last(algorithm, CLIENTS, 4, task, policy=synchronous(4), engine=stacked)
    assert tree.norm(tree.sub(near, want)) < 1e-2 * tree.norm(want)
    memories = Kept()
    log = Log()
    states(algorithm, CLIENTS, 2, task, memories=memories, log=log)
    assert not log.of("failure")
    assert {name.partition("/")[0] for name in memories.get(ClientId("c0"))} <= {"~broadcast", "scaffold"}


@pytest.mark.slow
def test_the_bits_of_serial_on_ray() -> None:
    task = small_task()
    algorithm = with_broadcast(fedavg(sgd(task, lr=0.1, batch_size=4)), CODECS["eden"])
    want, got = (
        last(algorithm, CLIENTS, 4, task, policy=synchronous(4), engine=engine)
        for engine in (serial, partial(ray, workers=1, placement_timeout_s=300.0))
    )
    assert same_bits(dict(got), dict(want))


def federation(policy: Policy, broadcast: Transform[Any] | None, **options: Any) -> Federation:
    task = classification(mlp(64, [16], 10))
    return Federation(
        task, digits(clients=6), fedavg(sgd(task, lr=0.1)), policy, broadcast=broadcast, evaluate_every=0, **options
    )


@pytest.mark.parametrize("policy", ["some", "buffered"])
def test_a_run_stopped_anywhere_ends_in_the_same_bits(policy: str, tmp_path: Path) -> None:
    def make() -> Federation:
        return federation(POLICIES[policy], int8(), fleet=lognormal())

    whole = make().run(8)
    found = stopped(make, 8, tmp_path, 2, 12)
    assert found.stops > 1
    assert same_bits(dict(found.result.params), dict(whole.params))


def spent(log: Log | Any) -> dict[str, float]:
    events: Sequence[Event] = log.of("update")
    return {name: sum(e.metrics.get(name, 0.0) for e in events) for name in ("bytes_down", "bytes_up", "saved_down", "saved_up")}


def test_the_frames_shrink_and_say_what_they_saved() -> None:
    task = classification(mlp(64, [64], 10))
    data, local = digits(clients=6), sgd(task, lr=0.1)
    sums = {}
    for name, algorithm in {
        "plain": fedavg(local),
        "up": pipe(fedavg(local), int8()),
        "both": with_broadcast(pipe(fedavg(local), int8()), int8()),
        "narrow": pipe(fedavg(local), cast("bf16")),
    }.items():
        log = Log()
        states(algorithm, data.clients, 8, task, log=log)
        sums[name] = spent(log)
    plain, up, both = (sums[name] for name in ("plain", "up", "both"))
    assert plain["saved_down"] == plain["saved_up"] == up["saved_down"] == 0
    for each in (up, both, sums["narrow"]):  # the frames as they would have been, to the byte
        assert each["bytes_up"] + each["saved_up"] == plain["bytes_up"]
        assert each["bytes_down"] + each["saved_down"] == plain["bytes_down"]
    assert 3.5 < plain["bytes_up"] / up["bytes_up"] < 4
    # the model once, then seven steps of a quarter: 8 / (1 + 7 / 4)
    assert plain["bytes_down"] / both["bytes_down"] == pytest.approx(8 / (1 + 7 / 4), rel=0.05)


def test_who_missed_rounds_is_sent_all_steps_or_the_model() -> None:
    """At a block of 32 a step of int8 is 9 of 32 bits: three of them are sent, and four are more than the model."""
    task = classification(mlp(64, [16], 10))
    watched = Watched(fedavg(sgd(task, lr=0.1)), CODECS["int8"])
    states(watched.algorithm, digits(clients=6).clients, 24, task, synchronous(2))
    lately: dict[str, int] = {}
    found = set()
    for round, client in sorted(watched.told):
        told, missed = watched.told[round, client], round - lately.get(client, round)
        assert told.steps == (missed if client in lately and missed <= 3 else 0)
        lately[client] = round
        found.add(told.steps)
    assert found == {0, 1, 2, 3}


def test_a_client_that_lost_its_memory_is_sent_the_model_in_the_end() -> None:
    task, memories, log = small_task(), Kept(), Log()
    algorithm = with_broadcast(fedavg(sgd(task, lr=0.1)), int8())
    *_, state = states(algorithm, CLIENTS, 2, task, memories=memories)
    memories.propose(ClientId("c1"), 1, "train", {})
    memories.commit(ClientId("c1"), 1, "train")
    states(algorithm, CLIENTS, 2 + PATIENCE + 2, state=state, memories=memories, log=log)
    told = [(e.round, e.client, e.text) for e in log.of("failure")]
    assert [(round, client) for round, client, _ in told] == [(2 + i, "c1") for i in range(PATIENCE)]
    assert "holds no model" in told[0][2]


def test_a_model_that_came_out_otherwise_is_noticed() -> None:
    task, memories, log = small_task(), Kept(), Log()
    algorithm = with_broadcast(fedavg(sgd(task, lr=0.1)), int8())
    *_, state = states(algorithm, CLIENTS, 2, task, memories=memories)
    held = dict(memories.get(ClientId("c1")))
    held["~broadcast/buffer"] = torch.nextafter(held["~broadcast/buffer"], torch.tensor(9.0))
    memories.propose(ClientId("c1"), 1, "train", held)
    memories.commit(ClientId("c1"), 1, "train")
    states(algorithm, CLIENTS, 3, state=state, memories=memories, log=log)
    assert [(e.client, "as it did at the server" in e.text) for e in log.of("failure")] == [("c1", True)]


def test_own_trees_are_sent_as_they_are() -> None:
    """c0 has a model of its own in every other round; what it holds of the common one stays, and it goes on from there."""
    task: Task = small_task()
    inner = fedavg(sgd(task, lr=0.1))
    sent: list[tuple[int, str, Tree]] = []
    rounds: list[int] = []

    def round(state: Any, clients: Sequence[ClientId]) -> Generator[Request, Reduced, Any]:
        flow = inner.round(state, clients)
        request = next(flow)
        own = {name: x * 2 for name, x in state.params.items()}
        rounds.append(len(rounds))
        alone = rounds[-1] % 2
        try:
            flow.send((yield request._replace(tree_for=lambda c: own if c == "c0" and alone else state.params)))
        except StopIteration as done:
            return done.value

    algorithm = with_broadcast(inner._replace(round=round), int8())
    noted = algorithm._replace(round=noting(algorithm, sent))
    log = Log()
    states(noted, CLIENTS, 10, task, log=log)
    assert not log.of("failure")
    marked = {(round, client): any(name.startswith("~broadcast/") for name in given) for round, client, given in sent}
    assert [marked[round, "c0"] for round in range(10)] == [True, False] * 5
    assert any(marked[round, "c3"] for round in range(1, 10, 2))
    saved = {(e.round, e.client): e.metrics["saved_down"] for e in log.of("update")}
    assert all(saved[round, ClientId("c0")] == 0 for round in range(1, 10, 2))
    assert saved[8, ClientId("c0")] > 0


def noting(algorithm: Algorithm[Any], sent: list[tuple[int, str, Tree]]) -> Any:
    """Its rounds, in which every tree is asked for twice, as a wrapper might."""

    def round(state: Any, clients: Sequence[ClientId]) -> Generator[Request, Reduced, Any]:
        flow = algorithm.round(state, clients)
        request = next(flow)
        nth = 1 + max((round for round, *_ in sent), default=-1)
        try:
            while True:
                tree_for = request.tree_for

                def twice(client: ClientId, tree_for: Any = tree_for) -> Tree:
                    first: Tree = tree_for(client)
                    assert tree_for(client) is first
                    sent.append((nth, str(client), first))
                    return first

                request = flow.send((yield request._replace(tree_for=twice)))
        except StopIteration as done:
            return done.value

    return round


def test_what_a_link_sends_beside_the_model_is_not_rounded() -> None:
    told: list[float] = []

    def encode(assignment: Any, broadcast: Tree, memory: Tree, update: Any) -> Any:
        told.append(float(broadcast["bound"]))
        return update, {}

    bound = torch.tensor(0.123456789)
    link: Transform[None] = Transform(
        "bound", lambda w: None, lambda s: {"bound": bound}, encode, None, lambda s, r: (r.tree, s)
    )  # fmt: skip
    task = small_task()
    states(with_broadcast(pipe(fedavg(sgd(task)), link), cast("bf16")), CLIENTS, 3, task)
    assert set(told) == {float(bound)}


def test_what_is_no_codec_of_a_model_is_refused() -> None:
    algorithm = fedavg(sgd(small_task()))
    with pytest.raises(ConfigError, match="bounds a norm"):
        with_broadcast(algorithm, clip(1.0))
    with pytest.raises(ConfigError, match="no work 'judge'"):
        with_broadcast(algorithm, int8(), work="judge")
    with pytest.raises(ConfigError, match="use it for the broadcast"):
        pipe(algorithm, xor())
    with pytest.raises(ConfigError, match="bounds a norm"):
        federation(Policy(), clip(1.0))


def test_the_largest_version_is_never_more_than_one_model_of_steps() -> None:
    task = small_task()
    algorithm = with_broadcast(fedavg(sgd(task, lr=0.1)), eden(bits=1))
    for state in states(algorithm, CLIENTS, 12, task):
        steps, public = state.algorithm.steps, state.algorithm.public
        assert sum(tree.size_bytes(each) for each in steps) < tree.size_bytes(public)
