"""Captured and stacked steps agree with the eager fold, for every fold that follows gradients, and say so where they can't."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from atoll import tree
from atoll.algorithms.fedavg import fedavg
from atoll.algorithms.feddyn import feddyn
from atoll.algorithms.fedprox import fedprox
from atoll.algorithms.mimelite import mimelite
from atoll.algorithms.scaffold import scaffold
from atoll.compute.eager import eager
from atoll.compute.measured import measured
from atoll.compute.stacked import Stacked, stacked
from atoll.compute.traced import traced
from atoll.data.examples import Tensors
from atoll.engines.serial import serial
from atoll.interfaces import Compute
from atoll.local.adamw import adamw
from atoll.local.binding import binding
from atoll.local.evaluate import evaluate
from atoll.local.sgd import sgd
from atoll.models.cnn import cnn
from atoll.models.lstm import lstm
from atoll.models.mlp import mlp
from atoll.rng import seeded
from atoll.tasks.causal_lm import causal_lm
from atoll.tasks.classification import classification
from atoll.tasks.forecast import forecast
from atoll.testing.engine import check_engine
from atoll.transforms.clip import clip
from atoll.transforms.pipe import pipe
from atoll.types import Assignment, ClientId, Failure, Local, Task, Tree, Trip, Update

DRAW = torch.Generator().manual_seed(5)
BASE = Tensors({"x": torch.randn(60, 5, generator=DRAW), "y": torch.randint(3, (60,), generator=DRAW)})
SIZES = (12, 9, 4, 3, 1, 12)  # with batches of 4: whole ones, a short last one, one short one alone


def holdings(base: Tensors, sizes: Sequence[int] = SIZES) -> list[Tensors]:
    """Clients of those sizes, over one base."""
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [base.subset(torch.arange(a, b)) for a, b in pairwise(ends)]


def plain(task: Task) -> Tree:
    return tree.pack(binding(task.module).state())


def beside(prefix: str) -> Callable[[Task], Tree]:
    """The model, and beside it something of its shape."""

    def of(task: Task) -> Tree:
        w = plain(task)
        return {**tree.put(w, "w/"), **tree.put({n: 0.1 * torch.ones_like(x) for n, x in w.items()}, prefix)}

    return of


Fold = tuple[Callable[[Task], Local[Any]], Callable[[Task], Tree]]
FOLDS: dict[str, Fold] = {
    "sgd": (lambda t: sgd(t, batch_size=4, epochs=2), plain),
    "momentum": (lambda t: sgd(t, batch_size=4, momentum=0.9, weight_decay=0.01), plain),
    "nesterov": (lambda t: sgd(t, batch_size=4, momentum=0.9, nesterov=True, epochs=2), plain),
    "clip_norm": (lambda t: sgd(t, batch_size=4, clip_norm=0.1), plain),
    "accumulate": (lambda t: sgd(t, batch_size=4, accumulate=2), plain),
    "steps": (lambda t: sgd(t, batch_size=4, steps=5), plain),
    "adamw": (lambda t: adamw(t, lr=1e-2, batch_size=4, epochs=2), plain),
    "prox": (lambda t: fedprox(sgd(t, batch_size=4, epochs=2), mu=0.1).local["train"], plain),
    "feddyn": (lambda t: feddyn(sgd(t, batch_size=4), 4).local["train"], plain),
    "scaffold": (lambda t: scaffold(sgd(t, batch_size=4), 4).local["train"], beside("c/")),
    "mimelite": (lambda t: mimelite(sgd(t, batch_size=4), t).local["train"], beside("m/")),
    "transformed": (lambda t: pipe(fedavg(sgd(t, batch_size=4)), clip(0.05)).local["train"], plain),
}


def dense() -> Task:
    return classification(mlp(5, [6], 3))


def normed() -> Task:
    with seeded(0):
        return classification(
            nn.Sequential(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), nn.Sigmoid(), nn.LayerNorm(6), nn.Linear(6, 3))
        )


def trips(
    local: Local[Any], start: Tree, examples: Sequence[Tensors], memories: Sequence[Tree] = (), round: int = 0
) -> list[Trip]:
    return [
        Trip(Assignment(round, ClientId(f"c{i}"), "train", start, i), local, own, memories[i] if memories else {})
        for i, own in enumerate(examples)
    ]


def through(compute: Compute, asked: Sequence[Trip], times: int = 1) -> list[tuple[Update, Tree]]:
    """The answers of the last of `times` passes: programs are recorded in the first, trusted in the second."""
    for _ in range(times):
        found = [(a._replace(tree=tree.map(torch.clone, a.tree)), m) for a, m in compute.run(asked) if isinstance(a, Update)]
    assert len(found) == len(asked)
    return found


def agree(found: Sequence[tuple[Update, Tree]], wanted: Sequence[tuple[Update, Tree]], tolerance: float = 2e-5) -> None:
    for (a, m), (b, n) in zip(found, wanted, strict=True):
        assert (a.client, a.weight, a.metrics["examples"], a.metrics["steps"]) == (
            b.client, b.weight, b.metrics["examples"], b.metrics["steps"],
        )  # fmt: skip
        assert a.metrics["loss"] == pytest.approx(b.metrics["loss"], rel=1e-5)
        for x, y in ((a.tree, b.tree), (m, n)):
            assert x.keys() == y.keys()
            for name in x:
                torch.testing.assert_close(x[name], y[name], rtol=tolerance, atol=tolerance * 0.1)


@pytest.mark.parametrize("name", FOLDS)
@pytest.mark.parametrize("make", [dense, normed])
@pytest.mark.parametrize("way", [traced, lambda: stacked(4)])
def test_a_way_agrees_with_the_eager_fold(
    name: str, make: Callable[[], Task], way: Callable[[], Compute], caplog: pytest.LogCaptureFixture
) -> None:
    task = make()
    fold, start = FOLDS[name]
    sizes = (12, 8, 4, 12, 16) if make is normed else SIZES  # batch norm refuses a batch of one
    asked = trips(fold(task), start(task), holdings(BASE, sizes))
    # Two examples through batch norm are +1 and -1 whatever they were: what is left of a gradient is rounding.
    tolerance = 1e-3 if make is normed and name == "accumulate" else 2e-5
    agree(through(way(), asked, times=3), through(eager(), asked), tolerance)
    assert not caplog.records, "it was computed eagerly"


@pytest.mark.parametrize("way", [traced, lambda: stacked(4)])
def test_client_memory_goes_through(way: Callable[[], Compute]) -> None:
    task = dense()
    local, start, examples = scaffold(sgd(task, batch_size=4), 4).local["train"], beside("c/")(task), holdings(BASE)
    memories = [m for _, m in through(eager(), trips(local, start, examples))]
    again = trips(local, start, examples, memories, round=1)
    agree(through(way(), again, times=3), through(eager(), again))


def test_every_step_is_replayed_once_it_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    task = dense()
    asked, way = trips(sgd(task, batch_size=4), plain(task), holdings(BASE, (12, 12, 12))), traced()
    wanted = through(way, asked)
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: pytest.fail("a step was eager"))
    agree(through(way, asked), wanted)


def images(n: int) -> Tensors:
    return Tensors({"x": torch.randn(n, 1, 8, 8, generator=DRAW), "y": torch.randint(4, (n,), generator=DRAW)})


@pytest.mark.parametrize("way", [traced, lambda: stacked(3)])
def test_convolutions_agree(way: Callable[[], Compute]) -> None:
    task = classification(cnn(1, 8, filters=[4, 6], kernel=3, hidden=16, outputs=4))
    asked = trips(sgd(task, batch_size=4, epochs=2), plain(task), holdings(images(30), (8, 9, 10)))
    agree(through(way(), asked, times=2), through(eager(), asked))


@pytest.mark.parametrize("way", [traced, lambda: stacked(3)])
def test_recurrent_networks_agree_whether_captured_or_not(way: Callable[[], Compute]) -> None:
    task = forecast(lstm(features=2, hidden=6))
    base = Tensors({"x": torch.randn(24, 7, 2, generator=DRAW), "y": torch.randn(24, 1, generator=DRAW)})
    asked = trips(sgd(task, batch_size=4, lr=0.05), plain(task), holdings(base, (8, 8, 8)))
    agree(through(way(), asked, times=2), through(eager(), asked))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_mixed_precision_agrees(precision: Any) -> None:
    task = dense()
    asked = trips(sgd(task, batch_size=4, precision=precision), plain(task), holdings(BASE, (12, 12)))
    agree(through(traced(), asked, times=2), through(eager(), asked), tolerance=1e-2 if precision == "bf16" else 2e-5)


def test_dropout_draws_what_it_draws_eagerly() -> None:
    with seeded(1):
        task = classification(nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.5), nn.Linear(16, 3)))
    asked = trips(sgd(task, batch_size=4, epochs=2), plain(task), holdings(BASE, (12, 8, 10)))
    for way in (traced(), stacked(3)):  # drawn apart from each other, so clients are not put in one program
        agree(through(way, asked, times=2), through(eager(), asked))


class Branching(nn.Module):
    """Its Python depends on the data, which operations show (`item`) or hide (`numpy`)."""

    def __init__(self, hide: bool) -> None:
        super().__init__()
        self.linear, self.hide = nn.Linear(5, 3), hide

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = float(x.detach().numpy().mean()) if self.hide else float(x.mean())
        return self.linear(x) * (1.0 + mean)


@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("way", [traced, lambda: stacked(3)])
def test_a_step_that_looks_at_its_data_is_eager_and_the_reason_is_said_once(
    hide: bool, way: Callable[[], Compute], caplog: pytest.LogCaptureFixture
) -> None:
    with seeded(0):
        task = classification(Branching(hide))
    asked = trips(sgd(task, batch_size=4), plain(task), holdings(BASE, (12, 12, 12)))
    with caplog.at_level(logging.WARNING, "atoll.compute"):
        agree(through(way(), asked, times=2), through(eager(), asked), tolerance=1e-6)
    assert [("data" in r.message or "values" in r.message) for r in caplog.records] == [True]


def test_a_fold_without_gradient_is_left_as_it_is() -> None:
    task = dense()
    asked = trips(evaluate(task, split="train"), plain(task), holdings(BASE))
    for way in (traced(), stacked(4)):
        assert way.ready(asked[0]) == 1
        assert [a.metrics["loss"] for a, _ in through(way, asked)] == [a.metrics["loss"] for a, _ in through(eager(), asked)]


def test_learning_rates_of_different_rounds_are_not_mixed() -> None:
    task = dense()
    local = sgd(task, batch_size=4, schedule="linear", schedule_rounds=4)
    asked = [*trips(local, plain(task), holdings(BASE)), *trips(local, plain(task), holdings(BASE), round=2)]
    agree(through(stacked(12), asked, times=2), through(eager(), asked))


@pytest.mark.parametrize("way", [traced, lambda: stacked(3)])
def test_one_clients_fault_is_not_its_neighbours(way: Callable[[], Compute]) -> None:
    task = dense()
    examples = holdings(BASE, (12, 12, 12))
    wrong = Tensors({"x": torch.randn(12, 7), "y": torch.zeros(12, dtype=torch.int64)})
    asked = trips(
        sgd(task, batch_size=4),
        plain(task),
        [examples[0], wrong, examples[2], Tensors({"x": torch.zeros(0, 5), "y": torch.zeros(0)})],
    )
    answers = [a for a, _ in way().run(asked)]
    assert [type(a) for a in answers] == [Update, Failure, Update, Failure]
    assert [a.kind for a in answers if isinstance(a, Failure)] == ["error", "no_data"]


@pytest.mark.parametrize("way", ["traced", "stacked"])
def test_engines_obey_their_laws(way: Any) -> None:
    check_engine(lambda locals_, clients, memories: serial(locals_, clients, memories, compute=way), tolerance=1e-5)


def test_a_trial_finds_how_many_go_at_once() -> None:
    task = dense()
    asked = trips(sgd(task, batch_size=4), plain(task), holdings(BASE))
    assert stacked().ready(asked[0]) in (1, 2, 4, 8, 16)
    assert stacked(3).ready(asked[0]) == 3


def test_what_was_measured_is_kept_for_the_next_time() -> None:
    task = dense()
    asked = trips(sgd(task, batch_size=4), plain(task), holdings(BASE, (12, 12, 12)))
    first = measured()
    agree(through(first, asked, times=2), through(eager(), asked))
    work, _, way = first.told.partition(": ")
    assert (work, way.split()[0]) in [("train", "eager"), ("train", "traced"), ("train", "stacked")]
    again, other = measured(before="train: eager"), measured(before="train: traced")
    assert again.ready(asked[0]) == 1
    assert again.told == "train: eager"
    other.ready(asked[0])
    assert other.told.removeprefix("train: ").split()[0] in ("traced", "stacked")


@pytest.mark.slow
@pytest.mark.parametrize("rate", [lambda t: adamw(t, lr=1e-2, batch_size=2), lambda t: sgd(t, lr=0.5, batch_size=2)])
def test_adapters_of_one_base_agree(tmp_path: Path, rate: Callable[[Task], Local[Any]], caplog: pytest.LogCaptureFixture) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    with seeded(0):
        sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 32}
        config = LlamaConfig(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, **sizes)
        LlamaForCausalLM(config).save_pretrained(tmp_path)
        task = causal_lm(str(tmp_path), adapter={"rank": 2}, dtype="float32")
    draw = torch.Generator().manual_seed(1)
    base = Tensors({"input_ids": torch.randint(64, (12, 16), generator=draw)})
    asked = trips(rate(task), plain(task), holdings(base, (4, 3, 4)))
    wanted = through(eager(), asked)
    caplog.clear()
    for way in (traced(), stacked(3)):
        assert way.ready(asked[0]) == (3 if isinstance(way, Stacked) else 1)
        agree(through(way, asked, times=2), wanted, tolerance=1e-3)
    assert not caplog.records, "it was computed eagerly"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", ["sgd", "adamw", "scaffold"])
@pytest.mark.parametrize("way", [traced, lambda: stacked(3)])
def test_on_a_gpu_too(name: str, way: Callable[[], Compute]) -> None:
    task = dense()
    task.module.cuda()
    fold, start = FOLDS[name]
    on_gpu = [Tensors({n: c.cuda() for n, c in own.mapped(dict).columns.items()}) for own in holdings(BASE)]
    asked = trips(fold(task), start(task), on_gpu)
    agree(through(way(), asked, times=3), through(eager(), asked), tolerance=1e-4)
