"""Every shipped fold obeys the laws of folds, and its step can be captured as a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import Interpreter

from atoll import tree
from atoll.algorithms.fedasync import fedasync
from atoll.algorithms.feddyn import feddyn
from atoll.algorithms.fedprox import fedprox
from atoll.algorithms.mimelite import mimelite
from atoll.algorithms.scaffold import scaffold
from atoll.data.examples import Tensors
from atoll.local.adamw import adamw
from atoll.local.binding import binding
from atoll.local.evaluate import evaluate
from atoll.local.full_gradient import full_gradient
from atoll.local.script import script
from atoll.local.sgd import sgd
from atoll.models.mlp import mlp
from atoll.rng import seeded
from atoll.tasks.classification import classification
from atoll.testing.local import capture, check_local, tensors_of
from atoll.types import Assignment, ClientId, Local, Task, Tree, Update

DRAW = torch.Generator().manual_seed(3)
EXAMPLES = Tensors({"x": torch.randn(12, 5, generator=DRAW), "y": torch.randint(3, (12,), generator=DRAW)})


def plain(task: Task) -> Tree:
    return binding(task.module).state()


def with_drift(prefix: str) -> Callable[[Task], Tree]:
    """The model, and beside it something of its shape."""

    def of(task: Task) -> Tree:
        w = plain(task)
        return {**tree.put(w, "w/"), **tree.put({n: 0.1 * torch.ones_like(x) for n, x in w.items()}, prefix)}

    return of


FOLDS: dict[str, tuple[Callable[[Task], Local[Any]], Callable[[Task], Tree]]] = {
    "sgd": (lambda t: sgd(t, batch_size=4), plain),
    "momentum": (lambda t: sgd(t, batch_size=4, momentum=0.9, weight_decay=0.01), plain),
    "nesterov": (lambda t: sgd(t, batch_size=4, momentum=0.9, nesterov=True), plain),
    "clip_norm": (lambda t: sgd(t, batch_size=4, clip_norm=0.1), plain),
    "accumulate": (lambda t: sgd(t, batch_size=4, accumulate=2), plain),
    "adamw": (lambda t: adamw(t, batch_size=4), plain),
    "prox": (lambda t: fedprox(sgd(t, batch_size=4), mu=0.1).local["train"], plain),
    "fedasync": (lambda t: fedasync(sgd(t, batch_size=4), rho=0.1).local["train"], plain),
    "feddyn": (lambda t: feddyn(sgd(t, batch_size=4), 4).local["train"], plain),
    "scaffold": (lambda t: scaffold(sgd(t, batch_size=4), 4).local["train"], with_drift("c/")),
    "mimelite": (lambda t: mimelite(sgd(t, batch_size=4), t).local["train"], with_drift("m/")),
    "full_gradient": (lambda t: full_gradient(t, batch_size=4), plain),
    "evaluate": (lambda t: evaluate(t, batch_size=4, split="train"), plain),
}


def mlp_task() -> Task:
    return classification(mlp(5, [6], 3))


def normed_task() -> Task:
    with seeded(0):
        return classification(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)))


@pytest.mark.parametrize("name", FOLDS)
@pytest.mark.parametrize("make", [mlp_task, normed_task])
def test_a_fold_obeys_the_laws_and_is_captured(name: str, make: Callable[[], Task]) -> None:
    task = make()
    fold, start = FOLDS[name]
    check_local(fold(task), EXAMPLES, start(task), captures=True)


def test_a_loop_of_ones_own_obeys_the_laws() -> None:
    def train(module: nn.Module, loader: Any) -> None:
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        for x, y in loader:
            optimiser.zero_grad()
            nn.functional.cross_entropy(nn.functional.dropout(module(x)), y).backward()
            optimiser.step()

    task = mlp_task()
    check_local(script(task, train), EXAMPLES, plain(task))


class OneByOne(Interpreter):
    """Runs a graph with its operations on lists of tensors taken apart: vmap knows no batching rule for those."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        _, listed, name = str(getattr(target, "_opname", "")).partition("_foreach_")
        if not listed:
            return super().call_function(target, args, kwargs)
        each = torch.linalg.vector_norm if name == "norm" else getattr(torch.Tensor, name)
        rows = [[a[i] if isinstance(a, list) else a for a in args] for i in range(len(args[0]))]
        return [each(*row, **kwargs) for row in rows]


@pytest.mark.parametrize("name", ["sgd", "momentum", "clip_norm"])
def test_a_captured_step_works_on_many_clients_at_once(name: str) -> None:
    task = mlp_task()
    fold, start = FOLDS[name]
    local, sent = fold(task), start(task)
    batch = [{n: c[i : i + 4] for n, c in EXAMPLES.columns.items()} for i in (0, 4, 8)]
    carries = [local.init(Assignment(0, ClientId(f"c{i}"), "train", sent, i), {}) for i in range(3)]
    graph, inputs = capture(local, carries[0], batch[0])
    stacked = [torch.stack(columns) for columns in zip(*(inputs(c, b) for c, b in zip(carries, batch, strict=True)), strict=True)]
    together = torch.func.vmap(OneByOne(graph).run)(*stacked)
    for i, (carry, read) in enumerate(zip(carries, batch, strict=True)):
        for got, want in zip(together, tensors_of(local.step(carry, read)), strict=True):
            torch.testing.assert_close(got[i], want.detach(), rtol=1e-6, atol=1e-6)


class Broken:
    """Folds that break one law each; the kit must find it."""

    @staticmethod
    def forgets(local: Local[Any]) -> Local[Any]:
        return local._replace(final=lambda a, c, s: (local.final(a, c, s)[0], {}))

    @staticmethod
    def draws(local: Local[Any]) -> Local[Any]:
        state = torch.Generator().manual_seed(0)

        def final(a: Assignment, c: Any, s: Any) -> tuple[Update, Tree]:
            update, memory = local.final(a, c, s)
            return update._replace(tree={n: x + torch.rand((), generator=state) for n, x in update.tree.items()}), memory

        return local._replace(final=final)

    @staticmethod
    def writes(local: Local[Any]) -> Local[Any]:
        def init(a: Assignment, memory: Tree) -> Any:
            next(iter(a.tree.values())).add_(1)
            return local.init(a, memory)

        return local._replace(init=init)

    @staticmethod
    def mislabels(local: Local[Any]) -> Local[Any]:
        def final(a: Assignment, c: Any, s: Any) -> tuple[Update, Tree]:
            update, memory = local.final(a, c, s)
            return update._replace(round=0), memory

        return local._replace(final=final)


@pytest.mark.parametrize("broken", [Broken.forgets, Broken.draws, Broken.writes, Broken.mislabels])
def test_a_fold_that_breaks_a_law_is_found(broken: Callable[[Local[Any]], Local[Any]]) -> None:
    task = mlp_task()
    with pytest.raises(AssertionError):
        check_local(broken(sgd(task, batch_size=4)), EXAMPLES, plain(task))
