"""Two nodes of a Ray cluster on one machine: the laws, the bits of serial, a node and a worker killed in mid-round."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from atoll.algorithms.evaluation import with_evaluation
from atoll.algorithms.fedavg import fedavg
from atoll.algorithms.scaffold import scaffold
from atoll.data.examples import Tensors
from atoll.engines import cluster as clusters
from atoll.engines.ray import Ray, ray
from atoll.errors import AtollError, ConfigError, RoundError
from atoll.local.evaluate import evaluate
from atoll.local.sgd import sgd
from atoll.policy import Policy
from atoll.store.memories import Kept
from atoll.testing.engine import check_engine
from atoll.testing.store import same_bits
from atoll.types import Algorithm, Assignment, Batching, ClientId, Event, Local, Task, Tree, Update
from tests.algorithms.test_laws import last, some_clients
from tests.core.small import Log, states
from tests.engines.test_engines import hurting, killing, task_of

pytestmark = [pytest.mark.slow]
# On a machine that does much else, a worker needs a minute to start.
one, two = (partial(ray, workers=workers, placement_timeout_s=300.0) for workers in (1, 2))


# One core a node, so that two workers are on two nodes; and nothing beside the raylet that need not be started.
NODE = {"num_cpus": 1, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Real raylets, each with one core and a store of its own, on the loopback; this process is connected to the head."""
    with pytest.MonkeyPatch.context() as patch:
        import ray as package
        from ray.cluster_utils import Cluster

        patch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)  # what makes Ray stay on the loopback
        logging.getLogger("ray").setLevel(logging.ERROR)
        nodes = Cluster(initialize_head=True, head_node_args=NODE)
        try:
            nodes.add_node(**NODE)
            package.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
            yield nodes
        finally:
            package.shutdown()
            nodes.shutdown()


@pytest.fixture
def second(cluster: Any) -> Any:
    """The node beside the head, added anew where a test before has removed it."""
    return next(iter(cluster.worker_nodes), None) or cluster.add_node(**NODE)


def test_the_laws_of_engines(cluster: Any) -> None:
    check_engine(one)


def judged(algorithm: Algorithm[Any], task: Task) -> Algorithm[Any]:
    return with_evaluation(algorithm, evaluate(task, split="train"), [ClientId("c0"), ClientId("c2")], work="judge")


def losses(log: Log) -> list[float]:
    return [e.metrics["loss"] for e in log.of("reduced", "judge")]


class Removing(Log):
    """Removes a node without a word when the first update of a round lands."""

    def __init__(self, cluster: Any, node: Any, round: int) -> None:
        super().__init__()
        self.cluster, self.node, self.round = cluster, node, round

    def emit(self, event: Event) -> None:
        super().emit(event)
        if self.node is not None and (event.kind, event.round) == ("update", self.round):
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.node = None


def test_scaffold_has_the_bits_of_serial_though_a_node_is_lost_in_mid_round(cluster: Any, second: Any) -> None:
    """Trained and judged by one task, in the same workers, with client memory beside; slowly, so that the lost node has work."""
    task, clients, logs = task_of(), some_clients((7, 4, 12, 1, 5, 9)), (Log(), Removing(cluster, second, round=1))
    plain = scaffold(sgd(task, batch_size=4), population=6)
    slow = plain._replace(local={"train": hurting(plain.local["train"], lambda assignment: time.sleep(0.1))})
    want = last(judged(plain, task), clients, 3, task, log=logs[0])
    got = last(judged(slow, task), clients, 3, task, engine=two, log=logs[1])
    assert logs[1].node is None, "the node was not removed"
    assert same_bits(dict(got), dict(want))
    assert losses(logs[0]) == losses(logs[1])
    assert len(losses(logs[1])) == 3
    assert not logs[1].of("failure")


def test_killed_workers_are_made_anew_and_a_client_that_costs_two_is_lost(cluster: Any, tmp_path: Path) -> None:
    """SIGKILL whenever c0 is at work; nobody else suffers for it, not even who was in one call with it."""
    task, clients, log = task_of(), some_clients(), Log()
    others = {c: clients[c] for c in clients if c != "c0"}
    want = last(fedavg(sgd(task, batch_size=4)), others, 1, task)
    algorithm = fedavg(hurting(sgd(task, batch_size=4), killing("c0", tmp_path, times=9)))
    got = last(algorithm, clients, 1, task, engine=one, log=log)
    (failure,) = log.of("failure")
    assert failure.client == "c0"
    assert failure.text.startswith("lost: ")
    assert len(list(tmp_path.iterdir())) in (2, 3), "two by itself, and one before if it was first in a call with others"
    assert same_bits(dict(got), dict(want)), "one client's death is another's"


def test_a_hung_client_costs_its_lease_and_a_federation_built_wrongly_stops_the_run(cluster: Any) -> None:
    def trouble(assignment: Assignment) -> None:
        if assignment.round == 1:
            raise ConfigError("the fold can't work with this")
        if assignment.client == "c1":
            time.sleep(600)

    task, log = task_of(), Log()
    algorithm = fedavg(hurting(sgd(task, batch_size=4), trouble))
    with pytest.raises(ConfigError, match="the fold can't work with this"):
        states(algorithm, some_clients(), 2, task, Policy(lease_s=3.0), engine=one, log=log)
    assert [(e.client, e.text.partition(":")[0]) for e in log.of("failure")] == [("c1", "expired")]


def test_a_worker_that_finds_no_place_is_told_with_what_there_is(cluster: Any) -> None:
    task, clients = task_of(), some_clients()
    engine = partial(ray, cpus_per_worker=64, gpus_per_worker=2, placement_timeout_s=1.0)
    began = time.monotonic()
    with pytest.raises(RoundError, match=r"wants 64 CPU and 2 GPU; the cluster has .*: 1 CPU"):
        states(fedavg(sgd(task)), clients, 1, task, engine=engine)
    assert time.monotonic() - began < 20


def looking() -> Local[Any]:
    """Says which part of the worker's memory the examples and the model lie in."""

    def lies(x: torch.Tensor) -> str:
        for line in Path("/proc/self/maps").read_text().splitlines():
            start, _, end = line.split()[0].partition("-")
            if int(start, 16) <= x.data_ptr() < int(end, 16):
                return line
        return ""

    def step(carry: Any, batch: Any) -> Any:
        return carry

    def final(a: Assignment, model: Tree, seen: Any) -> tuple[Update, Tree]:
        read = {"model": "plasma" in lies(model["w"]) or "shm" in lies(model["w"])}
        return Update(a.round, a.client, a.work, {"w": model["w"] + 1}, 1.0, {k: float(v) for k, v in read.items()}), {}

    return Local(lambda a, memory: a.tree, step, final, Batching(batch_size=1, steps=1))


def test_the_model_is_put_into_the_object_store_once_a_round_and_read_there(
    cluster: Any, second: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, put = two({"look": looking()}, {c: {"train": Tensors({"x": torch.ones(2, 1)})} for c in "abcdef"}, Kept()), []
    assert isinstance(engine, Ray)
    real = engine._put
    monkeypatch.setattr(engine, "_put", lambda thing: put.append(thing) or real(thing))
    try:
        for round in range(2):
            model = {"w": torch.full((500_000,), float(round))}
            engine.submit([Assignment(round, ClientId(c), "look", model, 0) for c in "abcdef"])
            found = [a for a in engine.results(60.0) if isinstance(a, Update)]
            assert len(found) == 6
            assert all(bool((a.tree["w"] == round + 1).all()) for a in found)
            assert {a.metrics["model"] for a in found} == {1.0}, "a worker has a copy of its own of the model"
        assert len(put) == 3, "one parcel, and one model a round"
    finally:
        engine.close()


def test_a_connection_is_not_taken_from_who_made_it_and_not_mistaken(cluster: Any) -> None:
    assert clusters.join(None) is False
    assert clusters.join(cluster.address) is False
    with pytest.raises(ConfigError, match="connected to"):
        clusters.join("10.1.2.3:6379")
    with pytest.raises(ConfigError, match="on a node of the cluster"):
        clusters.join("ray://10.1.2.3:10001")


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"cpus_per_worker": 0}, {"cpus_per_worker": 1.5}, {"gpus_per_worker": -1}, {"compute": "fast"}]
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(AtollError):
        ray({}, {}, **options)


ALONE = """
    import json, logging, psutil
    from atoll.data.examples import Tensors
    from atoll.engines.ray import ray
    from atoll.types import Assignment, Batching, Local, Update
    import torch

    def final(a, carry, seen):
        return Update(a.round, a.client, a.work, a.tree, 1.0, {}), {}

    fold = Local(lambda a, memory: 0, lambda carry, batch: carry, final, Batching())
    engine = ray({"train": fold}, {"c": {"train": Tensors({"x": torch.ones(1)})}}, workers=1)
    engine.submit([Assignment(0, "c", "train", {"w": torch.ones(3)}, 0)])
    (answer,) = engine.results(60.0)
    me = psutil.Process()
    family = [me, *me.children(recursive=True)]
    heard = [c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    engine.close()
    print(json.dumps({"w": answer.tree["w"].tolist(), "heard": sorted(set(heard)), "family": [p.pid for p in family[1:]]}))
"""


def test_a_cluster_of_its_own_listens_on_the_loopback_alone_and_ends_with_the_run() -> None:
    """RAY_ADDRESS names none: one is started."""
    command = [sys.executable, "-c", textwrap.dedent(ALONE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["w"] == [1, 1, 1]
    assert told["family"], "no process was started"
    assert told["heard"]
    assert set(told["heard"]) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    ends = time.monotonic() + 20
    while any(map(alive, told["family"])) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not [pid for pid in told["family"] if alive(pid)], "it outlives its run"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
