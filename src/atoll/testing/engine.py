"""Laws of an engine: one answer an assignment, the bits of `round.work`, client memory in two phases, no endless wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from atoll import tree
from atoll.data.examples import Tensors
from atoll.interfaces import Engine
from atoll.local.binding import binding
from atoll.local.evaluate import evaluate
from atoll.local.sgd import sgd
from atoll.models.mlp import mlp
from atoll.round import work
from atoll.store import state
from atoll.store.memories import Kept
from atoll.tasks.classification import classification
from atoll.testing.store import same_bits
from atoll.types import Answer, Assignment, Batching, ClientId, Examples, Failure, Local, Seen, Tree, Update

Make = Callable[[Mapping[str, Local[Any]], Mapping[ClientId, Mapping[str, Examples]], Kept], Engine]
PATIENCE_S = 60.0
NAMES = [f"c{i}" for i in range(7)]  # who hold examples to train on


def check_engine(make: Make, tolerance: float = 0.0) -> None:
    """Raise AssertionError where a law does not hold.

    `make(locals, clients, memories)` makes the engine, as `engines.serial.serial` does. `tolerance` 0: updates must
    be bit for bit those of `round.work`; an engine that computes in another order states how far it may be off.
    One engine is held to all the laws in turn, as one run keeps it for all its rounds; closing needs two more.

    >>> from atoll.engines.serial import serial
    >>> check_engine(serial)
    """
    with _open(make) as opened:
        _check_answers(opened, tolerance)
        for law in (_check_again, _check_refusals, _check_memory, _check_cancel, _check_timeout):
            law(opened)
    _check_close(make)


def _clients() -> dict[ClientId, dict[str, Examples]]:
    draw = torch.Generator().manual_seed(0)
    found: dict[ClientId, dict[str, Examples]] = {}
    for i in range(7):
        x, y = torch.randn(3 + i, 4, generator=draw), torch.randint(3, (3 + i,), generator=draw)
        found[ClientId(f"c{i}")] = {"train": Tensors({"x": x, "y": y})}
    found[ClientId("without")] = {"test": found[ClientId("c0")]["train"]}
    found[ClientId("empty")] = {"train": Tensors({"x": torch.zeros(0, 4), "y": torch.zeros(0, dtype=torch.int64)})}
    return found


def _counting(naps_s: float = 0.0, fault: str = "") -> Local[tuple[Tree, Tree]]:
    """Remembers how often it was asked; sleeps, or fails, if told."""

    def init(assignment: Assignment, memory: Tree) -> tuple[Tree, Tree]:
        return assignment.tree, memory

    def step(carry: tuple[Tree, Tree], batch: Mapping[str, torch.Tensor]) -> tuple[Tree, Tree]:
        time.sleep(naps_s)
        if fault:
            raise ValueError(fault)
        return carry

    def final(assignment: Assignment, carry: tuple[Tree, Tree], seen: Seen) -> tuple[Update, Tree]:
        count = carry[1].get("count", torch.tensor(0)) + 1
        update = Update(assignment.round, assignment.client, assignment.work, {"count": count}, float(seen.examples), {})
        return update, {"count": count, "mixed": torch.tensor([1.5, 2.0], dtype=torch.bfloat16)}

    return Local(init, step, final, Batching())


class Opened(NamedTuple):
    """An engine, and what it was made of."""

    engine: Engine
    locals: dict[str, Local[Any]]
    start: Tree
    memories: Kept


@contextmanager
def _open(make: Make) -> Iterator[Opened]:
    task = classification(mlp(4, [5], 3))
    locals_: dict[str, Local[Any]] = {
        "train": sgd(task, batch_size=2, epochs=2, momentum=0.9),
        "evaluate": evaluate(task, split="train"),
        "count": _counting(),
        "nap": _counting(naps_s=0.05),
        "fault": _counting(fault="the file is gone"),
    }
    memories, start = Kept(), tree.pack(binding(task.module).state())
    engine = make(locals_, _clients(), memories)
    try:
        yield Opened(engine, locals_, start, memories)
    finally:
        engine.close()
        binding(task.module).restore()


def _asks(work: str, start: Tree, clients: Iterable[str], round: int) -> list[Assignment]:
    """Each law has rounds of its own: in a run nobody is asked twice for one work of one round."""
    return [Assignment(round, ClientId(c), work, start, seed) for seed, c in enumerate(clients)]


def _all(engine: Engine, wanted: int) -> list[Answer]:
    """So many answers, each copied while it is valid, and neither acknowledged nor refused."""
    found: list[Answer] = []
    ends = time.monotonic() + PATIENCE_S
    while len(found) < wanted and time.monotonic() < ends:
        for answer in engine.results(1.0):
            found.append(answer._replace(tree=state.copy(answer.tree)) if isinstance(answer, Update) else answer)
    assert len(found) == wanted, f"{len(found)} answers to {wanted} assignments within {PATIENCE_S:g} s"
    assert list(engine.results(0.2)) == [], "an answer too many"
    return found


def _check_answers(opened: Opened, tolerance: float) -> None:
    engine, locals_, start, _ = opened
    for round, name in enumerate(("train", "evaluate")):
        asked = _asks(name, start, NAMES, round)
        engine.submit(asked[:3])
        engine.submit(asked[3:])
        found = {a.client: a for a in _all(engine, 7)}
        assert sorted(found) == NAMES, "an assignment was answered twice, another not at all"
        for assignment in asked:
            answer, examples = found[assignment.client], _clients()[assignment.client]["train"]
            want, _ = work(assignment, locals_[name], examples, {})
            assert isinstance(answer, Update), f"{assignment.client} failed: {answer}"
            assert isinstance(want, Update), f"{want}"
            assert (answer.round, answer.work, answer.weight) == (round, name, want.weight)
            _close(answer, want, tolerance)
            engine.acknowledge(answer)


def _close(answer: Update, want: Update, tolerance: float) -> None:
    if tolerance == 0.0:
        assert same_bits(dict(answer.tree), dict(want.tree)), f"the update of {answer.client} is not that of round.work"
        assert answer.metrics.get("loss") == want.metrics.get("loss"), f"the loss of {answer.client} differs"
        return
    tree.agree(answer.tree, want.tree)
    for name, x in want.tree.items():
        torch.testing.assert_close(answer.tree[name], x, rtol=tolerance, atol=tolerance)


def _check_again(opened: Opened) -> None:
    """Work submitted while answers are read is answered too."""
    engine, _, start, _ = opened
    engine.submit(_asks("train", start, ["c0", "c1"], round=10))
    heard: list[str] = []
    ends = time.monotonic() + PATIENCE_S
    while len(heard) < 6 and time.monotonic() < ends:
        for answer in engine.results(1.0):
            assert isinstance(answer, Update)
            heard.append(answer.client)
            engine.acknowledge(answer)
            if len(heard) <= 4:
                engine.submit(_asks("train", start, [f"c{len(heard) + 1}"], round=10 + len(heard)))
    assert sorted(heard) == [f"c{i}" for i in range(6)], f"asked one after another, {sorted(heard)} answered"


def _check_refusals(opened: Opened) -> None:
    engine, _, start, _ = opened
    engine.submit([*_asks("count", start, ["without", "empty", "nobody", "c0"], 20), *_asks("fault", start, ["c1"], 20)])
    found = {a.client: a for a in _all(engine, 5)}
    for name in ("without", "empty", "nobody"):
        answer = found[ClientId(name)]
        assert isinstance(answer, Failure), f"{name} has no examples and gave {answer}"
        assert answer.kind == "no_data", f"{name} has no examples and gave {answer}"
    fault = found[ClientId("c1")]
    assert isinstance(fault, Failure), f"a fault gave {fault}"
    assert fault.kind == "error", f"a fault gave {fault}"
    assert "the file is gone" in fault.reason, f"the reason does not say what went wrong: {fault.reason}"
    assert isinstance(found[ClientId("c0")], Update), "one client's fault is another's"
    for answer in found.values():
        engine.refuse(answer)


def _check_memory(opened: Opened) -> None:
    engine, _, start, memories = opened
    client, want = ClientId(NAMES[-1]), 0
    for round, accept in enumerate((True, False, True, False, True), start=30):
        engine.submit(_asks("count", start, [client], round))
        (answer,) = _all(engine, 1)
        assert isinstance(answer, Update)
        assert int(answer.tree["count"]) == want + 1, "a client does not start from what was committed last"
        assert int(memories.get(client).get("count", torch.tensor(0))) == want, "memory counts before it is acknowledged"
        (engine.acknowledge if accept else engine.refuse)(answer)
        want += accept
        assert int(memories.get(client).get("count", torch.tensor(0))) == want, "acknowledged memory is lost"
    assert memories.get(client)["mixed"].tolist() == [1.5, 2.0], "memory came back changed"


def _check_cancel(opened: Opened) -> None:
    engine, _, start, memories = opened
    names = NAMES[:-1]  # who have no memory yet
    engine.submit(_asks("nap", start, names, round=40))
    first = next(iter(engine.results(PATIENCE_S)), None)
    assert isinstance(first, Update)
    engine.acknowledge(first)
    engine.cancel(40, "nap")
    engine.submit(_asks("count", start, names, round=41))
    found = _all(engine, len(names))
    assert {a.work for a in found} == {"count"}, "work that was cancelled was answered"
    for answer in found:
        engine.refuse(answer)
    silent = [name for name in names if name != first.client and memories.get(ClientId(name))]
    assert not silent, f"cancelled work left its memory at {silent}"


def _check_timeout(opened: Opened) -> None:
    engine, _, start, _ = opened
    began, before = time.monotonic(), engine.now()
    assert list(engine.results(30.0)) == [], "answers to nothing"
    assert time.monotonic() - began < 10, "it waits although nothing is outstanding"
    engine.submit(_asks("nap", start, NAMES, round=50))
    began = time.monotonic()
    early = list(engine.results(0.0))
    assert time.monotonic() - began < 10, "a timeout of 0 s waits"
    assert engine.now() >= before, "the clock runs backwards"
    for answer in [*early, *_all(engine, 7 - len(early))]:
        engine.refuse(answer)


def _check_close(make: Make) -> None:
    with _open(make) as (engine, _, start, _):
        engine.submit(_asks("nap", start, ["c0", "c1", "c2"], round=0))
        for answer in engine.results(0.2):
            engine.refuse(answer)
        engine.close()
        engine.close()
    with _open(make) as (engine, _, _, _):
        engine.close()  # without work
