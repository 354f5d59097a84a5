"""DiLoCo, Streaming DiLoCo and data-parallel AdamW against steps on paper, against each other, and on every engine.

The model is one weight w and x = 1, so grad F_k(w) = w - Y_k with Y_a = 1 and Y_b = 5, whose mean is 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from atoll import tree
from atoll.algorithms.data_parallel import data_parallel
from atoll.algorithms.diloco import diloco
from atoll.algorithms.fedavg import fedavg
from atoll.algorithms.fragments import fragments
from atoll.algorithms.sparseloco import sparseloco
from atoll.algorithms.streaming_diloco import streaming_diloco
from atoll.data.examples import Tensors
from atoll.engines.processes import processes
from atoll.errors import ConfigError
from atoll.job.check import check
from atoll.job.plan import plan
from atoll.job.templates import named
from atoll.job.text import parse
from atoll.local.adamw import adamw
from atoll.local.binding import binding
from atoll.local.sgd import sgd
from atoll.models.mlp import mlp
from atoll.models.transformer import transformer
from atoll.policy import Policy
from atoll.round import RunState
from atoll.store import state as kept_state
from atoll.store.memories import Kept
from atoll.tasks.classification import classification
from atoll.tasks.custom import custom
from atoll.testing.store import same_bits
from atoll.transforms.broadcast import with_broadcast
from atoll.transforms.compress.cast import cast
from atoll.transforms.compress.chunk_top_k import chunk_top_k
from atoll.transforms.compress.int8 import int8
from atoll.transforms.pipe import pipe
from atoll.types import Algorithm, ClientId, Local, Task, Tree
from tests.core.small import TWO, Log, holding, line, states, weights


def near(*values: float) -> Any:
    return pytest.approx(list(values), rel=1e-5, abs=1e-6)


def halving(task: Task, keep: bool = True) -> Local[Any]:
    """Two steps, each half of the way to Y."""
    return sgd(task, lr=0.5, batch_size=None, steps=2, keep=keep)


def test_diloco_by_hand() -> None:
    task = line()
    # D = mean(.75 (Y_k - w)) = .75 (3 - w); lr .5, mu .5. Round 1: g = -2.25, m = -2.25, w = .5 (2.25 + 1.125) = 1.6875.
    # Round 2: g = -.75 (3 - 1.6875) = -.984375, m = -1.125 - .984375 = -2.109375;
    # w = 1.6875 + .5 (.984375 + 1.0546875) = 2.70703125
    got = weights(diloco(halving(task), outer_lr=0.5, momentum=0.5), holding(**TWO), 2, task)
    assert got == near(1.6875, 2.70703125)


def test_diloco_keeps_the_inner_momentum() -> None:
    task = line()
    # One client, Y = 4, inner v = .5 v + (y - 4), y -= .5 v, one step a round, outer rate 1 without momentum: SGD itself.
    # v: -4, then y = 2; v = -2 - 2 = -4, y = 4; v = -2 + 0, y = 5
    local = sgd(task, lr=0.5, momentum=0.5, batch_size=None, steps=1, keep=True)
    assert weights(diloco(local, outer_lr=1.0, momentum=0.0), holding(a=[4.0]), 3, task) == near(2, 4, 5)
    anew = sgd(task, lr=0.5, momentum=0.5, batch_size=None, steps=1)
    assert weights(fedavg(anew), holding(a=[4.0]), 3, task) == near(2, 3, 3.5)


def test_data_parallel_by_hand() -> None:
    task = line()
    # The gradient is w - 4 in the mean of the examples, and Adam's first step is lr. Then g = -3.5, b1 = b2 = .5:
    # m = -2 .5 - 3.5 .5 = -2.75, over .75; v = 8 .5 + 12.25 .5 = 10.125, over .75: a step of .5 3.6667 / 3.6742
    step = 0.5 * (2.75 / 0.75) / math.sqrt(10.125 / 0.75)
    options: dict[str, Any] = {"lr": 0.5, "batch_size": None, "b1": 0.5, "b2": 0.5}
    assert weights(data_parallel(task, weight_decay=0.0, **options), holding(**TWO), 2, task) == near(0.5, 0.5 + step)
    # Decay .1 at lr .5: what was there shrinks to .95 of itself first
    assert weights(data_parallel(task, weight_decay=0.1, **options), holding(**TWO), 2, task) == near(0.5, 0.475 + step)
    # Without memory, and with warm-up over four steps: an eighth, then a quarter
    options |= {"b1": 0.0, "b2": 0.0, "weight_decay": 0.0, "warmup_steps": 4}
    assert weights(data_parallel(task, **options), holding(**TWO), 2, task) == near(0.125, 0.375)


def test_data_parallel_of_one_worker_is_local_adamw() -> None:
    """The same batches, the same moments, the same warm-up: whether the optimiser sits at the client or at the server."""
    task, held = small(), {c: x for c, x in some_clients().items() if c == "a"}
    options: dict[str, Any] = {"lr": 0.02, "batch_size": 4, "clip_norm": 0.5, "schedule": "cosine"}
    options |= {"schedule_steps": 12, "warmup_steps": 4, "weight_decay": 0.1, "b2": 0.95}
    at_server = params_of(data_parallel(task, **options), held, 9, task)
    at_client = params_of(diloco(adamw(task, steps=3, keep=True, **options), 1.0, 0.0), held, 3, task)
    for name, x in at_server.items():
        torch.testing.assert_close(at_client[name], x, rtol=1e-4, atol=1e-5)


def small() -> Task:
    return classification(mlp(4, [6, 5], 3))


def test_sparseloco_by_hand() -> None:
    task = two()
    with torch.no_grad():
        task.module.layers[1].fill_(2.0)  # type: ignore[index]
    # One of the two entries a round, sign and size exact; decay .5, Y = 4, D = .75 (4 - w). Round 1 from (0, 2):
    # D = (3, 1.5), 3 is sent, e = (0, 1.5). Round 2 from (3, 2): D = (.75, 1.5), e = (.75, 2.25), the second is sent.
    # Round 3 from (3, 4.25): D = (.75, -.1875), e = (.375 + .75, -.1875), the first is sent: (4.125, 4.25)
    algorithm = sparseloco(halving(task), chunk=2, keep=1, bits=1, decay=0.5)
    start = RunState(0, algorithm.init({name: x.clone() for name, x in binding(task.module).state().items()}))
    got = [
        [float(x) for x in algorithm.params(s.algorithm).values()] for s in states(algorithm, holding(a=[4.0]), 3, state=start)
    ]
    assert got == [near(3, 2), near(3, 4.25), near(4.125, 4.25)]
    # Two clients, outer rate .5: what each sends is averaged. a, at 1, sends the second: -1.125; b, at 5, the first: 3.75
    algorithm = sparseloco(halving(task), 0.5, chunk=2, keep=1, bits=1)
    start = RunState(0, algorithm.init({"layers.0": torch.zeros(1), "layers.1": torch.tensor([2.5])}))
    (one,) = states(algorithm, holding(**TWO), 1, state=start)
    assert [float(x) for x in algorithm.params(one.algorithm).values()] == near(0.5 * 3.75 / 2, 2.5 - 0.5 * 1.125 / 2)


def some_clients(count: int = 3) -> Any:
    draw = torch.Generator().manual_seed(0)
    return {
        ClientId("abcd"[i]): {
            "train": Tensors({"x": torch.randn(9 + i, 4, generator=draw), "y": torch.randint(3, (9 + i,), generator=draw)})
        }
        for i in range(count)
    }


def params_of(algorithm: Algorithm[Any], held: Any, rounds: int, task: Task, **options: Any) -> Tree:
    params = algorithm.params(states(algorithm, held, rounds, task, **options)[-1].algorithm)
    return {name: x.clone() for name, x in params.items()}


def test_fragments() -> None:
    model = transformer(vocabulary=90, width=32, layers=12).state_dict()
    parts = fragments(model, 4)
    assert sorted(name for names in parts for name in names) == sorted(model)
    for i in range(12):  # strided: 0, 4, 8 in one; by number, so that 10 does not come after 1
        assert {p for p, names in enumerate(parts) if any(f"blocks.{i}." in name for name in names)} == {i % 4}
    sizes = [sum(model[name].numel() for name in names) for names in parts]
    assert max(sizes) < 1.2 * min(sizes)
    assert fragments(dict(reversed(model.items())), 4) == parts
    with pytest.raises(ConfigError, match="ask for fewer"):
        fragments({"0.weight": torch.zeros(2)}, 2)


def streaming_by_hand(
    Y: list[float], w: list[float], rounds: int, alpha: float, overlap: int, lr: float, mu: float
) -> list[float]:
    """Algorithm 2 in numbers: two weights a client, each its own fragment; two steps a round, each half of the way to Y."""
    own = [list(w) for _ in Y]
    base, m, late = list(w), [0.0, 0.0], None
    for r in range(rounds):
        p = r % 2
        for k, goal in enumerate(Y):
            for step in range(2):
                if late is not None and step == overlap:
                    own[k][late] = alpha * own[k][late] + (1 - alpha) * base[late]
                own[k] = [y + 0.5 * (goal - y) for y in own[k]]
        g = -sum(each[p] - base[p] for each in own) / len(own)
        m[p] = mu * m[p] + g
        base[p] -= lr * (g + mu * m[p])
        late = p
    return base


class Two(torch.nn.Module):
    """Two weights in two layers, whose gradients do not meet: |w_0 - y|^2 / 2 + |w_1 - y|^2 / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(1)) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.stack([p.squeeze(0) for p in self.layers])


def two() -> Task:
    return custom(Two(), lambda outputs, batch: 0.5 * (outputs - batch["y"][:, None]).square().sum(1).mean())


@pytest.mark.parametrize(("alpha", "overlap"), [(0.0, 0), (0.5, 0), (0.5, 1), (0.25, 1)])
def test_streaming_by_hand(alpha: float, overlap: int) -> None:
    task, log = two(), Log()
    algorithm = streaming_diloco(halving(task), 2, outer_lr=0.5, momentum=0.5, alpha=alpha, overlap=overlap)
    got = params_of(algorithm, holding(**TWO), 5, task, log=log)
    want = streaming_by_hand([1.0, 5.0], [0.0, 0.0], 5, alpha, overlap, 0.5, 0.5)
    assert [float(x) for x in got.values()] == near(*want)
    # Round 1 from whole models: fragment 0 after it is that of diloco, 1.6875
    first = params_of(algorithm, holding(**TWO), 1, task)
    assert [float(x) for x in first.values()] == near(1.6875, 0.0)


def test_one_fragment_without_mixing_is_diloco() -> None:
    task, held = small(), some_clients()
    local = adamw(task, lr=0.01, batch_size=3, steps=4, keep=True)
    streamed = params_of(streaming_diloco(local, 1, alpha=0.0, overlap=0), held, 4, task)
    whole = params_of(diloco(local), held, 4, task)
    for name, x in whole.items():
        torch.testing.assert_close(streamed[name], x, rtol=1e-5, atol=1e-6)


def test_only_a_fragment_crosses_the_network() -> None:
    task, held, log = small(), some_clients(), Log()
    w = {name: x.numel() for name, x in task.module.state_dict().items()}
    algorithm = streaming_diloco(adamw(task, batch_size=3, steps=2, keep=True), 3)
    states(algorithm, held, 5, task, log=log)
    parts = [4 * sum(w[name] for name in names) for names in fragments(task.module.state_dict(), 3)]
    for event in log.of("update"):
        up = event.metrics["bytes_up"] - event.metrics["header_up"]
        down = event.metrics["bytes_down"] - event.metrics["header_down"]
        assert up == parts[event.round % 3]
        assert down == 9 + (4 * sum(w.values()) if event.round == 0 else parts[(event.round - 1) % 3])


def test_who_missed_a_round_is_sent_the_whole_model() -> None:
    task, held, log = small(), some_clients(), Log()
    algorithm = streaming_diloco(adamw(task, batch_size=3, steps=2, keep=True), 3)
    after = states(algorithm, held, 6, task, log=log, policy=Policy(in_flight=2))
    whole = 4 * sum(x.numel() for x in task.module.state_dict().values())
    heard: dict[int, set[Any]] = {}
    for event in log.of("update"):
        heard.setdefault(event.round, set()).add(event.client)
        down = event.metrics["bytes_down"] - event.metrics["header_down"] - 9
        assert (down == whole) == (event.client not in heard.get(event.round - 1, set())), event
    assert all(tree.finite(each.algorithm.params) for each in after)


ALGORITHMS: dict[str, Callable[[Task], Algorithm[Any]]] = {
    "diloco": lambda task: diloco(adamw(task, lr=0.01, batch_size=3, steps=3, keep=True, warmup_steps=5)),
    "streaming": lambda task: streaming_diloco(adamw(task, lr=0.01, batch_size=3, steps=3, keep=True), 3),
    "streaming, at once": lambda task: streaming_diloco(adamw(task, batch_size=3, steps=3, keep=True), 2, overlap=0),
    "streaming int8": lambda task: pipe(streaming_diloco(adamw(task, batch_size=3, steps=3, keep=True), 3), int8()),
    "data-parallel": lambda task: data_parallel(task, lr=0.01, batch_size=3, clip_norm=1.0),
    "sparseloco": lambda task: sparseloco(adamw(task, batch_size=3, steps=3, keep=True), chunk=32, keep=4),
    "both directions": lambda task: with_broadcast(
        sparseloco(adamw(task, batch_size=3, steps=3, keep=True), chunk=32, keep=4), chunk_top_k(32, 16)
    ),
    "diloco cast": lambda task: pipe(diloco(adamw(task, batch_size=3, steps=3, keep=True)), cast("fp16")),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_engines_agree(name: str) -> None:
    task, held = small(), some_clients()
    algorithm, memories, others = ALGORITHMS[name](task), Kept(), Kept()
    alone = params_of(algorithm, held, 4, task, memories=memories)
    assert same_bits(alone, params_of(algorithm, held, 4, task, memories=others, engine=processes, workers=2))
    for client in held:
        assert same_bits(dict(memories.get(client)), dict(others.get(client))), f"what {client} remembers differs"
    tolerance = (
        0.02 if name in ("streaming int8", "sparseloco", "both directions", "diloco cast") else 1e-4
    )  # rounding may turn a code
    for how in ("traced", "stacked"):
        for key, x in params_of(algorithm, held, 4, task, compute=how).items():
            torch.testing.assert_close(x, alone[key], rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_order_of_the_population_and_a_checkpoint_do_not_matter(name: str, tmp_path: Path) -> None:
    task, held = small(), some_clients()
    algorithm, memories = ALGORITHMS[name](task), Kept()
    want = params_of(algorithm, held, 4, task)
    assert same_bits(want, params_of(algorithm, held, 4, task, population=sorted(held, reverse=True)))
    half = states(algorithm, held, 2, task, memories=memories)[-1]
    kept_state.save(half, tmp_path / "state")
    again = kept_state.load(half, tmp_path / "state")
    got = states(algorithm, held, 4, memories=memories, state=again)[-1]
    assert same_bits(want, dict(algorithm.params(got.algorithm)))


@pytest.mark.parametrize("fragments", [None, 3])
def test_check_counts_the_fragments_of_a_job(fragments: int | None) -> None:
    text, given = named("pretraining", "mine"), f", fragments={fragments}" if fragments else ""
    streamed = f'algorithm={{name="streaming_diloco"{given}}}'
    whole, found = (plan(check(parse(text, overrides=["transforms=[]", *more]))) for more in ([], [streamed]))
    assert whole.down == whole.up == 1
    assert found.down == found.up == 1 / (fragments or 4)


def test_what_does_not_fit_is_refused() -> None:
    task = small()
    kept = adamw(task, steps=2, keep=True)
    for wrong, says in (
        (lambda: diloco(adamw(task, steps=2)), "keep = true"),
        (lambda: streaming_diloco(adamw(task, steps=2)), "keep = true"),
        (lambda: sparseloco(adamw(task, steps=2)), "keep = true"),
        (lambda: streaming_diloco(kept, alpha=1.0), "alpha"),
        (lambda: streaming_diloco(kept, overlap=2), "fewer than the 2"),
        (lambda: streaming_diloco(kept, fragments=0).init({"w": torch.zeros(1)}), "1 or more"),
        (lambda: data_parallel(task, lr=0.0), "above 0"),
        (lambda: data_parallel(task, schedule="cosine"), "schedule"),
    ):
        with pytest.raises(ConfigError, match=says):
            wrong()
