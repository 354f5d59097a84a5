"""Local training against the same training written with torch.optim, and what its options promise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from atoll import rng
from atoll.algorithms.fedavg import fedavg
from atoll.data.examples import Tensors, batches
from atoll.errors import ConfigError
from atoll.local.adamw import adamw
from atoll.local.binding import binding
from atoll.local.evaluate import evaluate
from atoll.local.full_gradient import full_gradient
from atoll.local.schedule import schedule
from atoll.local.script import script
from atoll.local.sgd import sgd
from atoll.models.mlp import mlp
from atoll.rng import seeded
from atoll.round import work
from atoll.tasks.classification import classification
from atoll.tasks.next_token import next_token
from atoll.tasks.regression import regression
from atoll.testing.store import same_bits
from atoll.types import Assignment, ClientId, Examples, Local, Task, Tree, Update
from tests.core.small import holding, line, states

EXAMPLES = Tensors(
    {
        "x": torch.randn(11, 5, generator=torch.Generator().manual_seed(3)),
        "y": torch.randint(3, (11,), generator=torch.Generator().manual_seed(4)),
    }
)


def state_of(task: Task) -> Tree:
    return {name: x.clone() for name, x in binding(task.module).state().items()}


def answer(local: Local[Any], task: Task, examples: Examples = EXAMPLES, round: int = 0, start: Tree | None = None) -> Update:
    update, _ = work(Assignment(round, ClientId("a"), "train", start or state_of(task), 5), local, examples, {})
    binding(task.module).restore()
    assert isinstance(update, Update), update
    return update


def close(a: Tree, b: Tree, tolerance: float = 1e-6) -> None:
    assert sorted(a) == sorted(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance)


RULES: dict[str, tuple[Callable[..., Local[Any]], Callable[..., Any]]] = {
    "sgd": (lambda t, **o: sgd(t, lr=0.1, **o), lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum": (lambda t, **o: sgd(t, lr=0.1, momentum=0.9, **o), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "nesterov": (
        lambda t, **o: sgd(t, lr=0.1, momentum=0.9, nesterov=True, **o),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    ),
    "weight decay": (
        lambda t, **o: sgd(t, lr=0.1, momentum=0.5, weight_decay=0.1, **o),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, weight_decay=0.1),
    ),
    "adamw": (
        lambda t, **o: adamw(t, lr=0.01, weight_decay=0.1, **o),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_one_client_is_local_training(name: str) -> None:
    """FedAvg over one client, a round, is the bare loop over the same batches."""
    ours, theirs = RULES[name]
    task = classification(mlp(5, [6], 3))
    local = ours(task, batch_size=4, epochs=3)
    clients = {ClientId("only"): {"train": EXAMPLES}}
    (state,) = states(fedavg(local), clients, 1, task)
    model = mlp(5, [6], 3)
    optimiser = theirs(model.parameters())
    seed = rng.seed(0, 0, "train", ClientId("only"))
    with seeded(seed):
        for batch in batches(EXAMPLES, local.batching, seed):
            optimiser.zero_grad()
            F.cross_entropy(model(batch["x"]), batch["y"]).backward()
            optimiser.step()
    close({n: x.detach() for n, x in state.algorithm.params.items()}, dict(model.state_dict()))


def test_a_loop_of_ones_own_is_the_loop_run_bare() -> None:
    def train(module: nn.Module, loader: Any) -> dict[str, float]:
        optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
        for _ in range(2):
            for x, y in loader:
                optimiser.zero_grad()
                loss = F.cross_entropy(F.dropout(module(x), 0.2), y)
                loss.backward()
                optimiser.step()
        return {"loss": loss.item()}

    task = classification(mlp(5, [6], 3))
    local = script(task, train, batch_size=4)
    update = answer(local, task)
    model = mlp(5, [6], 3)
    before = {n: x.clone() for n, x in model.state_dict().items()}
    with seeded(5):
        metrics = train(model, [(b["x"], b["y"]) for b in batches(EXAMPLES, local.batching, 5)])
    want = {n: x - before[n] for n, x in model.state_dict().items()}
    assert same_bits(dict(update.tree), want)
    assert update.metrics["loss"] == metrics["loss"]


def test_a_loop_of_ones_own_inherits_no_gradient() -> None:
    def train(module: nn.Module, loader: Any) -> None:
        for x, y in loader:
            F.cross_entropy(module(x), y).backward()  # and never clears what it leaves
        with torch.no_grad():
            for p in module.parameters():
                p -= 0.1 * p.grad

    task = classification(mlp(5, [6], 3))
    local, start = script(task, train), state_of(task)
    first = answer(local, task, start=start)
    assert same_bits(dict(first.tree), dict(answer(local, task, start=start).tree))


def test_a_loop_may_read_batches_as_mappings_and_more_than_once() -> None:
    told: list[int] = []

    def train(module: nn.Module, loader: Any) -> None:
        told.extend([len(loader), len(list(loader)), len(loader[-1]["x"])])

    task = line()
    answer(script(task, train, batch_size=2, fields=None), task, holding(a=[1.0, 2.0, 3.0])[ClientId("a")]["train"])
    assert told == [2, 2, 1]


@pytest.mark.parametrize("parts", [2, 3, 11, 50])
def test_a_batch_in_parts_is_the_whole_batch(parts: int) -> None:
    task = classification(mlp(5, [6], 3))
    whole = answer(sgd(task, batch_size=None), task)
    close(answer(sgd(task, batch_size=None, accumulate=parts), task).tree, whole.tree)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight  # tied

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.embed(ids)))


def tokens_task() -> Task:
    with seeded(0):
        return next_token(Tokens())


def test_parts_weigh_what_the_task_counts() -> None:
    """The loss is a mean over tokens; parts with few of them must not count as much as parts with many."""
    task = tokens_task()
    ids = torch.randint(1, 7, (4, 6), generator=torch.Generator().manual_seed(0))
    targets = {"input_ids": ids, "labels": ids.clone()}
    targets["labels"][0, 2:] = -100
    targets["labels"][3] = -100  # a part in which nothing counts
    examples = Tensors(targets)
    whole = answer(sgd(task, batch_size=None), task, examples)
    close(answer(sgd(task, batch_size=None, accumulate=4), task, examples).tree, whole.tree)


def test_tied_parameters_are_one() -> None:
    task = tokens_task()
    assert list(binding(task.module).state()) == ["embed.weight"]
    ids = torch.randint(1, 7, (4, 6), generator=torch.Generator().manual_seed(0))
    update = answer(sgd(task, lr=0.1, batch_size=None), task, Tensors({"input_ids": ids}))
    bare = tokens_task()
    loss = bare.loss(bare.forward(bare.module, {"input_ids": ids}), {"input_ids": ids})
    (grad,) = torch.autograd.grad(loss, [bare.module.embed.weight])
    close(update.tree, {"embed.weight": -0.1 * grad})


def frozen_task() -> Task:
    module = mlp(5, [6], 3)
    module.hidden1.requires_grad_(False)
    return classification(module)


@pytest.mark.parametrize("make", [sgd, adamw, full_gradient, lambda t: script(t, lambda module, loader: None)])
def test_the_frozen_base_never_travels(make: Callable[[Task], Local[Any]]) -> None:
    task = frozen_task()
    before = task.module.hidden1.weight.clone()
    assert sorted(answer(make(task), task).tree) == ["output.bias", "output.weight"]
    assert torch.equal(task.module.hidden1.weight, before)


def normed_task() -> Task:
    with seeded(0):
        return classification(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)))


@pytest.mark.parametrize("make", [sgd, full_gradient])
def test_batch_norms_statistics_travel(make: Callable[..., Local[Any]]) -> None:
    task = normed_task()
    update = answer(make(task, batch_size=None), task)
    model = normed_task().module
    model(EXAMPLES.columns["x"])
    for name in ("1.running_mean", "1.running_var"):
        moved = model.state_dict()[name] - normed_task().module.state_dict()[name]
        torch.testing.assert_close(update.tree[name], moved)
    assert "1.num_batches_tracked" not in update.tree


@pytest.mark.parametrize("make", [lambda: classification(mlp(5, [6], 3)), normed_task])
def test_recomputed_activations_change_nothing(make: Callable[[], Task]) -> None:
    """Batch norm's statistics too: a forward pass done twice must not move them twice."""
    task = make()
    plain = answer(sgd(task, batch_size=4), task)
    close(answer(sgd(task, batch_size=4, checkpointing=True), task).tree, plain.tree)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close(precision: Any) -> None:
    task = classification(mlp(5, [6], 3))
    full = answer(sgd(task, batch_size=None), task)
    half = answer(sgd(task, batch_size=None, precision=precision), task)
    assert all(x.dtype == torch.float32 for x in half.tree.values())
    assert not same_bits(dict(full.tree), dict(half.tree)), "nothing was computed in half precision"
    for name, x in full.tree.items():
        assert float((x - half.tree[name]).norm()) <= 0.03 * float(x.norm()) + 1e-6, name


def test_a_gradients_norm_is_bounded_at_each_step() -> None:
    task = line()
    far, near = holding(a=[100.0])[ClientId("a")]["train"], holding(a=[0.5])[ClientId("a")]["train"]
    clipped = sgd(task, lr=0.5, batch_size=None, epochs=3, clip_norm=2.0)
    assert float(answer(clipped, task, far).tree["weight"]) == pytest.approx(3 * 0.5 * 2.0, rel=1e-5)
    assert float(answer(clipped, task, near).tree["weight"]) == pytest.approx(0.5 * (1 - 0.5**3), rel=1e-5)


def test_a_bounded_gradient_keeps_its_direction() -> None:
    task = classification(mlp(5, [6], 3))
    free, held = (answer(sgd(task, lr=1.0, batch_size=None, clip_norm=c), task).tree for c in (None, 0.01))
    a, b = (torch.cat([x.reshape(-1) for x in t.values()]) for t in (free, held))
    assert float(b.norm()) == pytest.approx(0.01, rel=1e-3)
    assert float(F.cosine_similarity(a, b, dim=0)) == pytest.approx(1.0, abs=1e-5)


def test_schedules() -> None:
    cosine = schedule("cosine", 4, 0)
    want = [(1 + math.cos(math.pi * r / 4)) / 2 for r in range(4)]
    assert [cosine.factor(r) for r in range(4)] == pytest.approx(want)
    assert [schedule("linear", 6, 2).factor(r) for r in range(8)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    for name, rounds in (("step", 3), ("linear", None)):
        with pytest.raises(ConfigError):
            schedule(name, rounds, 0)


def test_a_schedule_lowers_the_rate_of_the_round() -> None:
    task, examples = line(), holding(a=[1.0])[ClientId("a")]["train"]
    local = sgd(task, lr=0.5, batch_size=None, schedule="linear", schedule_rounds=4, warmup_rounds=1)
    assert float(answer(local, task, examples, round=0).tree["weight"]) == pytest.approx(0.5)
    assert float(answer(local, task, examples, round=2).tree["weight"]) == pytest.approx(0.5 * 2 / 3)


def test_dropout_is_drawn_from_the_assignments_seed() -> None:
    with seeded(0):
        task = classification(nn.Sequential(nn.Linear(5, 20), nn.Dropout(0.5), nn.Linear(20, 3)))
    local = sgd(task, batch_size=None)
    torch.manual_seed(1)
    first = answer(local, task)
    torch.rand(3)
    assert same_bits(dict(first.tree), dict(answer(local, task).tree))
    start = state_of(task)
    other, _ = work(Assignment(0, ClientId("a"), "train", start, 6), local, EXAMPLES, {})
    assert not same_bits(dict(first.tree), dict(other.tree))


def test_evaluation_trains_nothing_and_sees_no_dropout() -> None:
    with seeded(0):
        task = classification(nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(6, 3)))
    before = {n: x.clone() for n, x in task.module.state_dict().items()}
    update = answer(evaluate(task, batch_size=4, split="train"), task)
    assert update.tree == {}
    assert update.weight == 11
    task.module.eval()
    logits = task.module(EXAMPLES.columns["x"])
    assert update.metrics["loss"] == pytest.approx(F.cross_entropy(logits, EXAMPLES.columns["y"]).item(), rel=1e-5)
    right = (logits.argmax(1) == EXAMPLES.columns["y"]).float().mean()
    assert update.metrics["accuracy"] == pytest.approx(float(right))
    assert same_bits(before, dict(task.module.state_dict()))


def test_the_gradient_of_a_whole_client_comes_in_portions() -> None:
    task = regression(mlp(5, [6], 1))
    examples = Tensors({"x": EXAMPLES.columns["x"], "y": EXAMPLES.columns["y"].float()})
    whole = answer(full_gradient(task), task, examples)
    for size in (1, 4, 100):
        close(answer(full_gradient(task, batch_size=size), task, examples).tree, whole.tree)
    loss = task.loss(task.module(examples.columns["x"]), dict(examples.columns))
    close(whole.tree, dict(zip(whole.tree, torch.autograd.grad(loss, list(task.module.parameters())), strict=True)))


def test_what_was_sent_is_not_written_to() -> None:
    task = normed_task()
    start = state_of(task)
    for local in (sgd(task), adamw(task), full_gradient(task), evaluate(task, split="train")):
        sent = {name: x.clone() for name, x in start.items()}
        work(Assignment(0, ClientId("a"), "train", sent, 5), local, EXAMPLES, {})
        assert same_bits(sent, start)


def test_a_tree_of_another_model_is_named() -> None:
    task = classification(mlp(5, [6], 3))
    failure, _ = work(Assignment(0, ClientId("a"), "train", {"v": torch.zeros(1)}, 5), sgd(task), EXAMPLES, {})
    assert "not this model's" in failure.reason


def test_options_out_of_range_are_refused() -> None:
    task = line()
    for wrong in ({"precision": "int8"}, {"accumulate": 0}, {"lr": 0.0}, {"schedule": "cosine"}, {"schedule": "none"}):
        with pytest.raises(ConfigError):
            sgd(task, **wrong)


def test_a_clients_mistake_is_told_by_its_kind() -> None:
    def explode(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        raise KeyError("salary")

    task = replace(line(), loss=explode)
    start = binding(task.module).state()
    failure, _ = work(Assignment(2, ClientId("a"), "train", start, 5), sgd(task), holding(a=[1.0])[ClientId("a")]["train"], {})
    assert (failure.kind, failure.reason, failure.round) == ("error", "KeyError: 'salary'", 2)
    binding(task.module).restore()
