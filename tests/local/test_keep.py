"""Work that goes on where it was: optimiser, step count and place in the data, over rounds, engines and a kill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from atoll import tree
from atoll.algorithms.fedavg import fedavg
from atoll.data.examples import Tensors, batches
from atoll.engines.processes import processes
from atoll.errors import ConfigError
from atoll.local.adamw import adamw
from atoll.local.binding import binding
from atoll.local.full_gradient import full_gradient
from atoll.local.sgd import sgd
from atoll.models.mlp import mlp
from atoll.round import work
from atoll.store.journal import FileJournal
from atoll.store.memories import FileMemories, Kept
from atoll.tasks.classification import classification
from atoll.testing.local import check_local
from atoll.testing.store import same_bits
from atoll.transforms.compress.cast import cast
from atoll.transforms.pipe import pipe
from atoll.types import Algorithm, Assignment, Batching, ClientId, Local, Task, Tree, Update
from tests.core.small import states


def small() -> Task:
    return classification(mlp(4, [6], 3))


def examples(n: int = 11, seed: int = 0) -> Tensors:
    draw = torch.Generator().manual_seed(seed)
    return Tensors({"x": torch.randn(n, 4, generator=draw), "y": torch.randint(3, (n,), generator=draw), "i": torch.arange(n)})


def clients() -> Any:
    return {ClientId(name): {"train": examples(9 + i, i)} for i, name in enumerate("abc")}


KINDS: dict[str, Callable[[Task, int], Local[Any]]] = {
    "adamw": lambda task, steps: adamw(task, lr=0.01, batch_size=3, steps=steps, keep=True),
    "momentum": lambda task, steps: sgd(task, lr=0.05, momentum=0.9, batch_size=3, steps=steps, keep=True),
    "warm-up and decay": lambda task, steps: adamw(
        task, lr=0.05, batch_size=3, steps=steps, keep=True, schedule="cosine", schedule_steps=14, warmup_steps=5, clip_norm=0.5
    ),
}


def rounds(local: Local[Any], task: Task, count: int) -> tuple[Tree, Tree]:
    """One client by itself, round after round, as under an outer step of rate 1: the model, and what it remembers."""
    w: Tree = {name: x.clone() for name, x in binding(task.module).state().items()}
    memory: Tree = {}
    for r in range(count):
        update, memory = work(Assignment(r, ClientId("a"), "train", w, 100 + r), local, examples(), memory)
        assert isinstance(update, Update), update
        w = tree.add(w, update.tree)
    binding(task.module).restore()
    return w, memory


@pytest.mark.parametrize("kind", KINDS)
def test_many_short_rounds_are_one_long_one(kind: str) -> None:
    task = small()
    short, after = rounds(KINDS[kind](task, 2), task, 6)
    long, at_once = rounds(KINDS[kind](task, 12), task, 1)
    for name, x in long.items():
        torch.testing.assert_close(short[name], x, rtol=1e-5, atol=1e-6)
    assert after.keys() == at_once.keys()
    assert after["cursor/train"].tolist() == at_once["cursor/train"].tolist() == [100, 12]
    begun_anew, _ = rounds(sgd(task, lr=0.05, momentum=0.9, batch_size=3, steps=2), task, 6)
    assert not torch.allclose(next(iter(begun_anew.values())), next(iter(long.values())), atol=1e-4), (
        "the law would hold of anything"
    )


def test_a_cursor_reads_on_to_the_bit() -> None:
    many = Batching(batch_size=4, steps=13, shuffle=True)
    whole = [batch["i"].tolist() for batch in batches(examples(), many, 5)]
    for read in (0, 1, 2, 3, 4, 7, 12):
        rest = many._replace(steps=13 - read)
        assert [batch["i"].tolist() for batch in batches(examples(), rest, 5, read)] == whole[read:]
    seen = sorted(i for batch in whole[:3] for i in batch)
    assert seen == list(range(11)), "a pass reads everything once"


def test_the_fold_keeps_the_laws() -> None:
    task = small()
    start = binding(task.module).state()
    for make in KINDS.values():
        check_local(make(task, 2), examples(), start, captures=True)


@pytest.mark.parametrize("kind", KINDS)
def test_engines_agree(kind: str) -> None:
    task, held = small(), clients()
    algorithm, memories, others = fedavg(KINDS[kind](task, 2)), Kept(), Kept()
    alone = states(algorithm, held, 4, task, memories=memories)[-1].algorithm.params
    together = states(algorithm, held, 4, task, memories=others, engine=processes, workers=2)[-1].algorithm.params
    assert same_bits(dict(alone), dict(together))
    for client in held:
        assert same_bits(dict(memories.get(client)), dict(others.get(client))), f"what {client} remembers differs"
    for how in ("traced", "stacked"):
        kept = Kept()
        other = states(algorithm, held, 4, task, memories=kept, compute=how)[-1].algorithm.params
        for name, x in alone.items():
            torch.testing.assert_close(other[name], x, rtol=1e-4, atol=1e-6)
        assert [kept.get(c)["cursor/train"].tolist()[1] for c in held] == [8, 8, 8]


class Killed(Exception):
    """The process ends here."""


class Dying(FileJournal):
    """A journal whose process dies at the n-th answer, before it is acknowledged or before it is kept."""

    left, before = 5, False

    def accept(self, answer: Any) -> None:
        self.left -= 1
        if self.left == 0 and self.before:
            raise Killed
        super().accept(answer)
        if self.left == 0:
            raise Killed


@pytest.mark.parametrize("before", [True, False])
def test_a_killed_run_goes_on_where_each_client_was(tmp_path: Path, before: bool) -> None:
    task, held = small(), clients()
    algorithm: Algorithm[Any] = pipe(fedavg(KINDS["adamw"](task, 2)), cast("bf16"))
    memories = FileMemories(tmp_path / "whole")
    want = states(algorithm, held, 3, task, memories=memories)[-1]
    first = states(algorithm, held, 1, task, memories=FileMemories(tmp_path / "cut"), journal=FileJournal(tmp_path / "journal"))[
        -1
    ]
    dying = Dying(tmp_path / "journal")
    dying.left, dying.before = 2, before
    with pytest.raises(Killed):
        states(algorithm, held, 3, memories=FileMemories(tmp_path / "cut"), journal=dying, state=first)
    again, journal = FileMemories(tmp_path / "cut"), FileJournal(tmp_path / "journal")
    again.recover(answer for round in journal.rounds() if round >= 1 for answer in journal.accepted(round))
    got = states(algorithm, held, 3, memories=again, journal=journal, state=first)[-1]
    assert same_bits(dict(algorithm.params(got.algorithm)), dict(algorithm.params(want.algorithm)))
    for client in held:
        assert same_bits(dict(again.get(client)), dict(memories.get(client)))
        assert again.get(client)["cursor/train"].tolist()[1] == 6


def test_kinds_of_work_keep_apart() -> None:
    task = small()
    memory: Tree = {}
    w = binding(task.module).state()
    for name in ("train", "finetune"):
        update, memory = work(Assignment(0, ClientId("a"), name, w, 3), KINDS["adamw"](task, 2), examples(), memory)
        assert isinstance(update, Update)
    assert memory["cursor/train"].tolist() == memory["cursor/finetune"].tolist() == [3, 2]
    assert same_bits(tree.take(memory, "kept/train/"), tree.take(memory, "kept/finetune/"))


def test_another_models_memory_is_a_failure_that_says_so() -> None:
    task, other = small(), classification(mlp(4, [7], 3))
    local = KINDS["adamw"](task, 2)
    _, memory = work(Assignment(0, ClientId("a"), "train", binding(task.module).state(), 3), local, examples(), {})
    local = KINDS["adamw"](other, 2)
    answer, after = work(Assignment(1, ClientId("a"), "train", binding(other.module).state(), 3), local, examples(), memory)
    assert not isinstance(answer, Update)
    assert "another model or optimiser" in answer.reason
    assert after is memory


def test_a_schedule_in_steps() -> None:
    task = small()
    with pytest.raises(ConfigError, match="keep = true"):
        adamw(task, warmup_steps=3)
    with pytest.raises(ConfigError, match="rounds or steps"):
        adamw(task, warmup_steps=3, warmup_rounds=1, keep=True)
    with pytest.raises(ConfigError, match="schedule_steps"):
        adamw(task, schedule="linear", warmup_steps=3, keep=True)
    # Adam's first step is lr in every coordinate that has a gradient: warm-up over 4 steps makes it a quarter.
    sizes = []
    for warm in (0, 4):
        local = adamw(task, lr=0.1, weight_decay=0.0, batch_size=None, steps=1, warmup_steps=warm, schedule_steps=99, keep=True)
        update, _ = work(Assignment(0, ClientId("a"), "train", binding(task.module).state(), 3), local, examples(), {})
        assert isinstance(update, Update)
        sizes.append(float(list(update.tree.values())[-1].abs().max()))
    assert sizes == [pytest.approx(0.1, rel=1e-4), pytest.approx(0.025, rel=1e-4)]


def test_a_gradient_of_the_next_batches() -> None:
    """What data-parallel training asks of a worker: each round the batch after the last one."""
    task, log = small(), list[Tree]()
    memory: Tree = {}
    w = binding(task.module).state()
    local = full_gradient(task, batch_size=11, steps=1)
    for r in range(3):
        update, memory = work(Assignment(r, ClientId("a"), "train", w, 3 + r), local, examples(22), memory)
        assert isinstance(update, Update)
        log.append({name: x.clone() for name, x in update.tree.items()})
    whole, _ = work(Assignment(0, ClientId("a"), "train", w, 3), full_gradient(task), examples(22), {})
    assert isinstance(whole, Update)
    for name, x in whole.tree.items():
        torch.testing.assert_close((log[0][name] + log[1][name]) / 2, x, rtol=1e-5, atol=1e-6)
    assert memory["cursor/train"].tolist() == [3, 3]
