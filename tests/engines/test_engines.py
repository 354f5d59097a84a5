"""The engines obey the laws; workers that are killed, a parent that is killed, and closing leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from atoll.algorithms.fedavg import fedavg
from atoll.engines.processes import processes
from atoll.engines.serial import serial
from atoll.errors import ConfigError
from atoll.interfaces import Engine
from atoll.local.binding import binding
from atoll.local.sgd import sgd
from atoll.models.mlp import mlp
from atoll.policy import Policy
from atoll.store.memories import Kept
from atoll.tasks.classification import classification
from atoll.testing.engine import check_engine
from atoll.testing.store import same_bits
from atoll.types import Algorithm, Assignment, Batch, ClientId, Event, Failure, Local, Task, Tree, Update
from tests.algorithms.test_laws import last, some_clients
from tests.core.small import Log, holding, line, states

ENGINES: dict[str, Callable[..., Engine]] = {
    "serial": serial,
    "one worker": partial(processes, workers=1),
    "two workers": partial(processes, workers=2),
    "three workers": partial(processes, workers=3),
}


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_obeys_the_laws(name: str) -> None:
    check_engine(ENGINES[name])


def task_of() -> Task:
    return classification(mlp(5, [6], 3))


def hurting(local: Local[Any], hurt: Callable[[Assignment], None]) -> Local[Any]:
    """The fold, with something done to its process in the middle."""

    def init(assignment: Assignment, memory: Tree) -> Any:
        return assignment, local.init(assignment, memory)

    def step(carry: Any, batch: Batch) -> Any:
        hurt(carry[0])
        return carry[0], local.step(carry[1], batch)

    return Local(init, step, lambda a, c, s: local.final(a, c[1], s), local.batching)


def killing(client: str, folder: Path, times: int) -> Callable[[Assignment], None]:
    """SIGKILL to the process that works for a client, the first so many times."""

    def hurt(assignment: Assignment) -> None:
        if assignment.client == client and len(list(folder.iterdir())) < times:
            (folder / f"{time.monotonic_ns()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return hurt


def wearing(task: Task, hurt: Callable[[Assignment], None]) -> Algorithm[Any]:
    return fedavg(hurting(sgd(task, batch_size=4), hurt))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_is_replaced_and_the_round_has_the_same_bits(workers: int, tmp_path: Path) -> None:
    task, clients, log = task_of(), some_clients(), Log()
    want = last(fedavg(sgd(task, batch_size=4)), clients, 2, task)
    algorithm = wearing(task, killing("c2", tmp_path, times=1))
    got = last(algorithm, clients, 2, task, engine=processes, workers=workers, log=log)
    assert same_bits(dict(got), dict(want))
    assert not log.of("failure")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_client_that_kills_two_workers_is_lost_and_nobody_else(workers: int, tmp_path: Path) -> None:
    task, clients, log = task_of(), some_clients(), Log()
    algorithm = wearing(task, killing("c2", tmp_path, times=9))
    states(algorithm, clients, 1, task, engine=processes, workers=workers, log=log)
    (failure,) = log.of("failure")
    assert failure.client == "c2"
    assert failure.text.startswith("lost: ")
    assert "signal 9" in failure.text
    assert len(list(tmp_path.iterdir())) == 2


def test_who_waits_behind_a_killer_is_not_to_blame(tmp_path: Path) -> None:
    """One worker has two assignments at once: the first kills it twice, the second only waited."""
    task, clients = task_of(), some_clients()
    engine = processes({"train": hurting(sgd(task), killing("c2", tmp_path, 9))}, clients, Kept(), workers=1)
    try:
        start = binding(task.module).state()
        engine.submit([Assignment(0, ClientId(c), "train", start, 1) for c in ("c2", "c0", "c1")])
        found = {a.client: type(a) for a in engine.results(60.0)}
        assert found == {"c0": Update, "c1": Update, "c2": Failure}
    finally:
        engine.close()


def test_a_worker_killed_between_rounds_is_replaced() -> None:
    task, clients = task_of(), some_clients()
    local = sgd(task, batch_size=4)
    engine = processes({"train": local}, clients, Kept(), workers=2)
    start = binding(task.module).state()
    try:
        for round in range(3):
            engine.submit([Assignment(round, c, "train", start, 1) for c in clients])
            found = list(engine.results(60.0))
            assert sorted(a.client for a in found if isinstance(a, Update)) == sorted(clients)
            for answer in found:
                engine.refuse(answer)
            for child in children(os.getpid()):
                os.kill(child, signal.SIGKILL)
    finally:
        engine.close()


def children(parent: int) -> list[int]:
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(pid) for pid in text.split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


PARENT = """
    import os, time, torch
    from atoll.engines.processes import processes
    from atoll.data.examples import Tensors
    from atoll.types import Assignment, Batching, Local, Update

    def step(carry, batch):
        os.write(1, b"at work\\n")  # whole, beside another process that says the same
        {work}
        return carry

    fold = Local(lambda a, m: 0, step, lambda a, c, s: (Update(a.round, a.client, a.work, {{}}, 1.0, {{}}), {{}}), Batching())
    clients = {{f"c{{i}}": {{"train": Tensors({{"x": torch.ones(1)}})}} for i in range(4)}}
    engine = processes({{"train": fold}}, clients, workers=2)
    engine.submit([Assignment(0, c, "train", {{"w": torch.zeros(3)}}, 0) for c in clients])
    for answer in engine.results(60.0):
        engine.refuse(answer)
    print("idle", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("work", "until"), [("pass", "idle"), ("time.sleep(20)", "at work")])
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_killed_parent_leaves_no_worker(work: str, until: str) -> None:
    source = textwrap.dedent(PARENT.format(work=work))
    process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for text in process.stdout:
            if text.strip() == until:
                break
        workers = children(process.pid)
        assert len(workers) == 2
        process.kill()
        process.wait()
        ends = time.monotonic() + 10
        while any(map(alive, workers)) and time.monotonic() < ends:
            time.sleep(0.05)
        left = [pid for pid in workers if alive(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, f"{len(left)} workers outlive their parent"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def named_memory() -> set[str]:
    """Named shared memory, without that of the database servers that other tests start beside this one."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("PostgreSQL.")}


def test_closing_leaves_nothing_behind() -> None:
    task, clients = task_of(), some_clients()
    shared, before, files = named_memory(), set(children(os.getpid())), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        last(fedavg(sgd(task, batch_size=4)), clients, 1, task, engine=processes, workers=2)
    assert named_memory() <= shared
    assert set(children(os.getpid())) <= before
    assert len(os.listdir("/proc/self/fd")) <= files + 4, "file descriptors are left open"


def test_workers_see_what_was_loaded_before_the_first_assignment() -> None:
    """Examples and the frozen base are inherited by the fork, not sent."""
    task, log = line(), Log()
    (state,) = states(fedavg(sgd(task, lr=0.5)), holding(a=[4.0]), 1, task, engine=processes, workers=1, log=log)
    assert float(state.algorithm.params["weight"]) == pytest.approx(2.0)


def test_a_federation_that_is_built_wrongly_stops_the_run() -> None:
    """A ConfigError in a worker is no client's fault: it comes out of the engine."""

    def refuse(assignment: Assignment) -> None:
        raise ConfigError("the fold can't work with this")

    task = line()
    algorithm = fedavg(hurting(sgd(task), refuse))
    for engine in (serial, partial(processes, workers=2)):
        with pytest.raises(ConfigError, match="the fold can't work with this"):
            states(algorithm, holding(a=[4.0]), 1, task, engine=engine)


def test_a_lease_bounds_the_wait_for_a_client_that_hangs() -> None:
    def hang(assignment: Assignment) -> None:
        if assignment.client == "b":
            time.sleep(30)

    task, log = line(), Log()
    algorithm, began = fedavg(hurting(sgd(task), hang)), time.monotonic()
    states(algorithm, holding(a=[4.0], b=[4.0]), 1, task, Policy(lease_s=1.0), engine=processes, workers=2, log=log)
    assert time.monotonic() - began < 15
    assert [(e.client, e.text.partition(":")[0]) for e in log.of("failure")] == [("b", "expired")]


def test_no_worker_at_all_is_refused() -> None:
    with pytest.raises(ConfigError):
        processes({}, {}, workers=0)


class Wrapped:
    """An engine that breaks a law; what it does not break, it leaves to the one inside."""

    def __init__(self, locals_: Mapping[str, Local[Any]], clients: Any, memories: Kept) -> None:
        self.inner = serial(locals_, clients, memories)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Twice(Wrapped):
    def results(self, timeout_s: float) -> Any:
        for answer in self.inner.results(timeout_s):
            yield answer
            yield answer


class Hasty(Wrapped):
    def results(self, timeout_s: float) -> Any:
        for answer in self.inner.results(timeout_s):
            if isinstance(answer, Update):
                self.inner.acknowledge(answer)
            yield answer


class Silent(Wrapped):
    def results(self, timeout_s: float) -> Any:
        return (a for a in self.inner.results(timeout_s) if not isinstance(a, Failure))


class Rounding(Wrapped):
    def results(self, timeout_s: float) -> Any:
        for a in self.inner.results(timeout_s):
            yield a._replace(tree={n: x.half().to(x.dtype) for n, x in a.tree.items()}) if isinstance(a, Update) else a


class Deaf(Wrapped):
    def cancel(self, round: int, work: str) -> None:
        pass


@pytest.mark.parametrize("broken", [Twice, Hasty, Silent, Rounding, Deaf])
def test_an_engine_that_breaks_a_law_is_found(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.testing.engine.PATIENCE_S", 2.0)
    with pytest.raises(AssertionError):
        check_engine(broken)


def test_serial_leaves_the_number_of_threads_alone() -> None:
    before = torch.get_num_threads()
    task = line()
    states(fedavg(sgd(task)), holding(a=[4.0]), 1, task)
    assert torch.get_num_threads() == before


def test_a_hung_clients_worker_is_killed_when_its_lease_ends() -> None:
    """A fold that never returns costs its client its place, not the run its worker."""
    task, clients, log = task_of(), some_clients(), Log()
    hung = sorted(clients)[1]
    local = hurting(sgd(task, batch_size=4), lambda a: time.sleep(600 if a.client == hung else 0))
    began = time.monotonic()
    last(fedavg(local), clients, 1, task, policy=Policy(lease_s=3.0), engine=processes, log=log, workers=2)
    assert time.monotonic() - began < 60
    assert [(e.client, e.text.partition(":")[0]) for e in log.of("failure")] == [(hung, "expired")]


def test_a_frozen_base_is_held_once_whatever_the_number_of_workers() -> None:
    """200 MB that no client trains: what each worker has of its own stays far below that."""

    class Adapted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = torch.nn.Parameter(torch.ones(5, 10_000_000), requires_grad=False)
            self.head = torch.nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x + self.base.sum(1) * 1e-9)

    task, clients = classification(Adapted()), some_clients()
    algorithm = fedavg(sgd(task, batch_size=4))
    assert sorted(binding(task.module).state()) == ["head.bias", "head.weight"]
    own: list[int] = []

    class Measuring(Log):
        def emit(self, event: Event) -> None:
            if event.kind == "reduced":
                own.extend(private_mb(w.process.pid) for w in made[0]._workers)  # type: ignore[attr-defined]

    made: list[Engine] = []

    def engine(*arguments: Any) -> Engine:
        made.append(processes(*arguments, workers=2))
        return made[0]

    last(algorithm, clients, 1, task, engine=engine, log=Measuring())
    assert len(own) == 2
    assert max(own) < 60, f"a worker holds {max(own)} MB of its own beside a base of 200 MB"


def private_mb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) // 1024
