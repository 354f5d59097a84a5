"""A run killed at any moment goes on from its checkpoint and its journal to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atoll.algorithms.evaluation import with_evaluation
from atoll.algorithms.fedasync import fedbuff
from atoll.algorithms.fedavg import fedavgm
from atoll.algorithms.fedkseed import fedkseed
from atoll.algorithms.mimelite import mimelite
from atoll.algorithms.qfedavg import qfedavg
from atoll.algorithms.scaffold import scaffold
from atoll.engines.serial import serial
from atoll.local.binding import binding
from atoll.local.evaluate import evaluate
from atoll.local.sgd import sgd
from atoll.models.mlp import mlp
from atoll.policy import Policy, buffered, synchronous
from atoll.round import RunState, Shell, run
from atoll.store import state as kept
from atoll.store.journal import FileJournal
from atoll.store.memories import FileMemories
from atoll.tasks.classification import classification
from atoll.testing.store import same_bits
from atoll.transforms.broadcast import with_broadcast
from atoll.transforms.clip import clip
from atoll.transforms.compress.cast import cast
from atoll.transforms.compress.feedback import feedback
from atoll.transforms.compress.int8 import int8
from atoll.transforms.compress.random_k import random_k
from atoll.transforms.compress.top_k import top_k
from atoll.transforms.compress.xor import xor
from atoll.transforms.pipe import pipe
from atoll.types import Algorithm, Answer, ClientId, Task, Transform, Tree
from tests.algorithms.test_laws import some_clients
from tests.core.small import Log

ROUNDS = 3


class Killed(BaseException):
    """The process dies here."""


class Mortal(FileJournal):
    """A journal whose process dies after so many accepted answers: just after writing, before anybody is told."""

    left = 10**9

    def accept(self, answer: Answer) -> None:
        super().accept(answer)
        self.left -= 1
        if not self.left:
            raise Killed


def task_of() -> Task:
    return classification(mlp(5, [4], 3))


def judged(task: Task) -> Algorithm[Any]:
    local = sgd(task, batch_size=4)
    return with_evaluation(fedavgm(local), evaluate(task, split="train"), [ClientId("c0"), ClientId("c2")])


def owing() -> Transform[Any]:
    return feedback([clip(1.0), top_k(0.2), int8()], "always", decay=0.9)


CASES: dict[str, tuple[Callable[[Task], Algorithm[Any]], Policy]] = {
    "scaffold": (lambda task: scaffold(sgd(task, batch_size=4), population=4), synchronous()),
    "scaffold of some": (lambda task: pipe(scaffold(sgd(task, batch_size=4), 4), cast("bf16")), synchronous(3)),
    "fedavgm judged": (judged, synchronous(2)),
    "qfedavg": (lambda task: qfedavg(sgd(task, batch_size=4), task), synchronous(3)),
    "mimelite": (lambda task: mimelite(sgd(task, batch_size=4), task), synchronous(3)),
    "fedkseed": (lambda task: fedkseed(task, lr=0.01, steps=3, candidates=64), synchronous(3)),
    "fedkseed-pro buffered": (lambda task: fedkseed(task, lr=0.01, steps=3, candidates=64, pro=True), buffered(3, buffer=2)),
    "fedbuff": (lambda task: fedbuff(sgd(task, batch_size=4)), buffered(3, buffer=2)),
    "fedbuff one by one": (lambda task: fedbuff(sgd(task, batch_size=4)), buffered(2, buffer=1)),
    "broadcast to some": (lambda task: with_broadcast(fedavgm(sgd(task, batch_size=4)), int8(block=32)), synchronous(3)),
    "broadcast buffered": (lambda task: with_broadcast(scaffold(sgd(task, batch_size=4), 4), xor()), buffered(3, buffer=2)),
    "scaffold buffered": (lambda task: scaffold(sgd(task, batch_size=4), population=4), buffered(3, buffer=2)),
    "error feedback": (lambda task: pipe(fedavgm(sgd(task, batch_size=4)), owing()), synchronous(3)),
    "error feedback buffered": (lambda task: pipe(fedbuff(sgd(task, batch_size=4)), owing()), buffered(3, buffer=2)),
    "random_k": (lambda task: pipe(fedavgm(sgd(task, batch_size=4)), random_k(0.3)), synchronous(3)),
}


def go(name: str, folder: Path, die_after: int = 10**9) -> tuple[Tree, dict[str, Tree], int]:
    """Run to the end, or to death; from the last checkpoint in the folder if there is one."""
    make, policy = CASES[name]
    task, clients = task_of(), some_clients()
    algorithm = make(task)
    journal, memories = Mortal(folder / "journal"), FileMemories(folder / "memory")
    journal.left = die_after
    state = RunState(0, algorithm.init(binding(task.module).state()))
    if (folder / "state").exists():
        state = kept.load(state, folder / "state")
    memories.recover(journal.accepted(state.round))
    engine = serial(algorithm.local, clients, memories)
    shell = Shell(engine, journal, Log())
    for after in run(state, algorithm, policy, list(clients), ROUNDS, 7, shell):
        kept.save(after, folder / "state")
        state = after
    accepted = 10**9 - journal.left
    return algorithm.params(state.algorithm), {c: memories.get(c) for c in clients}, accepted


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_ends_in_the_same_bits(name: str, tmp_path: Path) -> None:
    want, remembered, accepted = go(name, tmp_path / "whole")
    assert accepted >= ROUNDS
    for count in range(1, accepted + 1):
        folder = tmp_path / str(count)
        with pytest.raises(Killed):
            go(name, folder, die_after=count)
        got, memories, _ = go(name, folder)
        assert same_bits(dict(got), dict(want)), f"killed after {count} of {accepted} answers, the model differs"
        assert same_bits(memories, remembered), f"killed after {count} of {accepted} answers, what clients remember differs"


@pytest.mark.parametrize("name", ["scaffold", "fedbuff"])
def test_a_run_killed_again_and_again_ends_in_the_same_bits(name: str, tmp_path: Path) -> None:
    want, remembered, _ = go(name, tmp_path / "whole")
    for _ in range(100):
        try:
            got, memories, _ = go(name, tmp_path / "often", die_after=2)
            break
        except Killed:
            continue
    assert same_bits(dict(got), dict(want))
    assert same_bits(memories, remembered)


def test_only_what_was_not_answered_is_computed_again(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        go("fedavgm judged", tmp_path, die_after=5)
    *_, accepted = go("fedavgm judged", tmp_path)
    whole = go("fedavgm judged", tmp_path / "whole")[2]
    assert accepted == whole - 5
