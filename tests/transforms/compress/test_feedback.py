"""What codecs lose is sent later, once: through refusals, late answers and workers, and only where it pays."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from atoll import tree
from atoll.algorithms.fedavg import fedavg
from atoll.algorithms.scaffold import scaffold
from atoll.data.examples import Tensors
from atoll.engines.processes import processes
from atoll.engines.serial import serial
from atoll.errors import ConfigError
from atoll.local.sgd import sgd
from atoll.store.memories import Kept
from atoll.tasks.custom import custom
from atoll.testing.store import same_bits
from atoll.testing.transform import check_transform
from atoll.transforms.clip import clip
from atoll.transforms.compress.cast import cast
from atoll.transforms.compress.feedback import feedback
from atoll.transforms.compress.few_bits import few_bits
from atoll.transforms.compress.int8 import int8
from atoll.transforms.compress.random_k import random_k
from atoll.transforms.compress.top_k import top_k
from atoll.transforms.pipe import pipe
from atoll.types import Assignment, ClientId, Failure, Task, Transform, Tree, Update
from tests.core.small import TWO, Log, holding, line, states

A = ClientId("a")


@pytest.mark.parametrize(
    "transform",
    [
        feedback([top_k(0.3)], "always"),
        feedback([clip(1.0), top_k(0.3), few_bits(2)], "always", decay=0.9),
        feedback([cast("bf16")], "always"),
        feedback([top_k(0.3), int8()], participation=0.5),
        feedback([top_k(0.3), int8()], participation=0.49),
    ],
    ids=["top_k", "clip inside", "no decode", "on", "off"],
)
def test_feedback_obeys_the_laws(transform: Transform[Any]) -> None:
    check_transform(transform, tolerance=2**-6)


def gone(transform: Transform[Any], sends: Sequence[tuple[int, Tree]]) -> tuple[list[Tree], Tree]:
    """What the server decodes of one client's updates, each of a round, all acknowledged; and the memory in the end."""
    memory, got = dict[str, Tensor](), list[Tree]()
    for round, u in sends:
        start = Assignment(round, A, "train", tree.zeros(u), round)
        sent, after = transform.encode(start, {}, memory, Update(round, A, "train", u, 1.0, {}))
        memory = dict(after)
        got.append((transform.decode(sent, u) if transform.decode else sent).tree)
    return got, memory


def rows(outs: Sequence[Tree]) -> list[list[float]]:
    return [out["x"].tolist() for out in outs]


def test_by_hand() -> None:
    one = {"x": torch.tensor([3.0, 2.0])}
    assert rows(gone(feedback([top_k(0.5)], "always"), [(0, one), (1, one), (2, one)])[0]) == [[3, 0], [0, 4], [6, 0]]


def test_a_residual_decays_with_each_round_that_passes() -> None:
    one = {"x": torch.tensor([8.0, 4.0])}
    outs, memory = gone(feedback([top_k(0.5)], "always", decay=0.5), [(0, one), (3, one), (4, one)])
    # r = (0, 4); three rounds later v = (8, 4 + .5) sends 8, r = (0, 4.5); one later v = (8, 4 + 2.25)
    assert rows(outs) == [[8, 0], [8, 0], [8, 0]]
    assert memory["residual/x"].tolist() == [0, 6.25]
    assert int(memory["round"]) == 4


def test_what_clip_cuts_off_is_not_remembered() -> None:
    _, memory = gone(feedback([clip(5.0), top_k(0.5)], "always"), [(0, {"x": torch.tensor([8.0, 6.0])})])
    torch.testing.assert_close(memory["residual/x"], torch.tensor([0.0, 3.0]))  # of (4, 3), not of (8, 6)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 999), count=st.integers(1, 6), codec=st.sampled_from(["top_k", "few_bits", "both", "cast"]))
def test_what_was_sent_and_what_is_owed_is_all_that_was_made(seed: int, count: int, codec: str) -> None:
    links = {"top_k": [top_k(0.2)], "few_bits": [few_bits(1)], "both": [top_k(0.2), int8()], "cast": [cast("bf16")]}[codec]
    draw = torch.Generator().manual_seed(seed)
    us: list[Tree] = [{"x": torch.randn(7, 3, generator=draw), "y": torch.randn((), generator=draw)} for _ in range(count)]
    outs, memory = gone(feedback(links, "always"), list(enumerate(us)))
    for name in ("x", "y"):
        made = torch.stack([u[name] for u in us]).sum(0)
        sent = torch.stack([out[name].float() for out in outs]).sum(0)
        owed = memory.get(f"residual/{name}", torch.zeros_like(made))
        torch.testing.assert_close(sent + owed, made, rtol=1e-4, atol=1e-4)


def test_only_what_is_lost_is_remembered() -> None:
    u: Tree = {"x": torch.tensor([1.0, 0.3]), "exact": torch.tensor([0.5, 2.0]), "steps": torch.tensor([7])}
    outs, memory = gone(feedback([cast("bf16")], "always"), [(0, u), (1, u)])
    assert sorted(memory) == ["residual/x", "round"]
    assert outs[1]["steps"].tolist() == [7]
    assert sorted(gone(feedback([top_k(1.0)], "always"), [(0, u)])[1]) == ["round"]


def test_a_model_that_was_cut_otherwise_owes_nothing() -> None:
    before: Tree = {"x": torch.tensor([3.0, 2.0]), "gone": torch.ones(2)}
    after: Tree = {"x": torch.tensor([[3.0, 2.0, 1.0]]), "new": torch.zeros(1)}
    outs, _ = gone(feedback([top_k(0.25)], "always"), [(0, before), (1, after)])
    assert outs[1]["x"].tolist() == [[3.0, 0.0, 0.0]]


def test_participation_decides() -> None:
    on, off = feedback([top_k(0.5)], participation=0.5), feedback([top_k(0.5)], participation=0.2)
    one = {"x": torch.tensor([3.0, 2.0])}
    assert on.properties.feedback
    assert on.properties.memory
    assert not off.properties.feedback
    assert rows(gone(on, [(0, one), (1, one)])[0]) == [[3, 0], [0, 4]]
    assert (rows(gone(off, [(0, one), (1, one)])[0]), gone(off, [(0, one)])[1]) == ([[3, 0], [3, 0]], {})
    assert not feedback([top_k(0.5)], "never").properties.memory


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: feedback([top_k(0.5)]), "participation = that share"),
        (lambda: feedback([]), r"around = \[\]"),
        (lambda: feedback([top_k(0.5)], "often"), "when = 'often'"),  # type: ignore[arg-type]
        (lambda: feedback([top_k(0.5)], "always", decay=0.0), "decay = 0"),
        (lambda: feedback([top_k(0.5)], "always", decay=1.1), "decay = 1.1"),
        (lambda: feedback([top_k(0.5)], participation=0.0), "participation = 0"),
        (lambda: feedback([top_k(0.5), clip(1.0)], "always"), "put 'clip' first"),
        (lambda: feedback([random_k(0.5)], "always"), "use 'top_k' inside it"),
        (lambda: feedback([feedback([top_k(0.5)], "always"), int8()], "always"), "keep one|attached twice"),
        (lambda: pipe(fedavg(sgd(line())), clip(1.0), feedback([top_k(0.5)], "always")), "put 'clip' inside it"),
        (lambda: pipe(fedavg(sgd(line())), top_k(0.5), feedback([int8()], "always")), "put 'top_k' inside it"),
        (lambda: pipe(fedavg(sgd(line())), feedback([top_k(0.5)], "always"), top_k(0.1)), "'top_k' is attached twice"),
        (lambda: pipe(fedavg(sgd(line())), feedback([top_k(0.5)], "always"), clip(1.0)), "put 'clip' first"),
        (lambda: pipe(scaffold(sgd(line()), 2), feedback([clip(1.0), top_k(0.5)], "always")), "more than an update"),
    ],
)
def test_what_does_not_go_together_is_refused(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


def test_a_codec_may_follow_it() -> None:
    task, log = line(), Log()
    states(pipe(fedavg(sgd(task)), feedback([top_k(0.5)], "always"), int8()), holding(**TWO), 2, task, log=log)
    assert not log.of("failure")


# Two clients that pull one coordinate apart and the other the same way: f_k(w) = |w - c_k|^2 / 2.
APART = {"a": (10.0, 1.0), "b": (-10.0, 1.0)}


class Point(nn.Module):
    """The model is a point of the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand_as(x)


def point() -> Task:
    def loss(outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return 0.5 * (outputs - batch["x"]).square().sum(1).mean()

    return custom(Point(), loss)


def pulling(centres: Mapping[str, tuple[float, ...]]) -> dict[ClientId, dict[str, Any]]:
    return {ClientId(name): {"train": Tensors({"x": torch.tensor([c])})} for name, c in centres.items()}


def path(centres: Mapping[str, tuple[float, ...]], rounds: int, transform: Transform[Any], asked: int | None = None) -> Tensor:
    """w after each round, (rounds, 2): everyone asked sends lr (c_k - w), and the mean of what arrives is added."""
    draw, w, found = random.Random(1), torch.zeros(2), []
    memories: dict[str, Tree] = {name: {} for name in centres}
    decode = transform.decode
    assert decode is not None
    for round in range(rounds):
        got = []
        for name in draw.sample(sorted(centres), asked or len(centres)):
            u: Tree = {"w": 0.1 * (torch.tensor(centres[name]) - w)}
            start = Assignment(round, ClientId(name), "train", {"w": w}, round)
            sent, memories[name] = transform.encode(start, {}, memories[name], Update(round, A, "train", u, 1.0, {}))
            got.append(decode(sent, u).tree["w"])
        w = w + torch.stack(got).mean(0)
        found.append(w)
    return torch.stack(found)


def test_top_k_converges_with_feedback_and_not_without() -> None:
    """Both send the coordinate on which they differ, which averages to 0, so that the common one never moves from 0."""
    assert path(APART, 100, top_k(0.5)).abs().max() < 1e-6
    remembered = path(APART, 300, feedback([top_k(0.5)], "always"))
    assert float((remembered[-100:].mean(0) - torch.tensor([0.0, 1.0])).norm()) < 0.05


def test_signs_converge_with_feedback_and_not_without() -> None:
    """At the optimum 0 of these three the scaled signs are 4.5 (1, 1), 2 (-1, 1), 4.5 (-1, -1): their sum is not 0."""
    three = {"a": (8.0, 1.0), "b": (-2.0, 2.0), "c": (-6.0, -3.0)}
    biased, right = (path(three, 300, each)[-100:].mean(0) for each in (few_bits(1), feedback([few_bits(1)], "always")))
    assert float(biased.norm()) > 0.5
    assert float(right.norm()) < 0.1


def test_two_of_ten_clients_hand_in_what_they_owe_late() -> None:
    """Each takes part in a fifth of the rounds, and owes its coordinate as many of its own turns as ever: Fed-EF's n/m."""
    ten = {f"{name}{i}": c for name, c in APART.items() for i in range(5)}
    some, everybody = (path(ten, 100, feedback([top_k(0.5)], "always"), asked) for asked in (2, None))
    first = [int((each[:, 1] > 0).nonzero()[0]) for each in (some, everybody)]
    assert first[0] >= 3 * first[1]
    assert path(ten, 40, feedback([top_k(0.5)], participation=0.2), 2).equal(path(ten, 40, top_k(0.5), 2))


ENGINES = {"serial": serial, "processes": processes}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_residual_is_neither_lost_nor_doubled(engine: str) -> None:
    """From w = 0 each update is .05 (10, 1): top-1 sends .5 of it, and owes .05 more of the rest at each acknowledgement."""
    task, memories = point(), Kept()
    algorithm = pipe(fedavg(sgd(task, lr=0.05, batch_size=None), weights="uniform"), feedback([top_k(0.5)], "always"))
    options = {"workers": 1} if engine == "processes" else {}
    made = ENGINES[engine](algorithm.local, pulling(APART), memories, **options)  # type: ignore[operator]

    def owed() -> list[float]:
        return list(memories.get(A).get("~feedback/residual/w", torch.zeros(2)).tolist())

    def answer(round: int) -> Update:
        made.submit([Assignment(round, A, "train", {"w": torch.zeros(2)}, round)])
        found = list(made.results(60.0))
        assert not isinstance(found[0], Failure), found
        return found[0]  # type: ignore[no-any-return]

    try:
        made.acknowledge(answer(0))
        assert owed() == pytest.approx([0, 0.05])
        made.refuse(answer(1))  # late, or not decodable: u is lost, as without feedback, and what was owed is still owed
        assert owed() == pytest.approx([0, 0.05])
        made.acknowledge(answer(1))  # computed again, as after a kill
        assert owed() == pytest.approx([0, 0.1])
        made.submit([Assignment(2, A, "train", {"w": torch.zeros(2)}, 2)])
        made.cancel(2, "train")
        assert list(made.results(0.2)) == []
        assert owed() == pytest.approx([0, 0.1])
        for round in range(3, 10):
            made.acknowledge(answer(round))
        assert owed() == pytest.approx([0, 0.45])  # .1 + 7 times .05
    finally:
        made.close()


def test_workers_give_the_bits_of_serial() -> None:
    found = {}
    for engine, options in ((serial, {}), (processes, {"workers": 2})):
        task, memories = point(), Kept()
        algorithm = pipe(fedavg(sgd(task, lr=0.05, batch_size=None)), feedback([top_k(0.5), few_bits(2)], "always", decay=0.9))
        *_, last = states(algorithm, pulling(APART), 5, task, engine=engine, memories=memories, **options)  # type: ignore[arg-type]
        found[engine.__name__] = {"": algorithm.params(last.algorithm), **{c: memories.get(ClientId(c)) for c in APART}}
    assert same_bits(found["serial"], found["processes"])
    assert found["serial"]["a"]["~feedback/residual/w"].any()


def test_composite_payloads_and_buffers() -> None:
    task, log, memories = line(), Log(), Kept()
    algorithm = pipe(scaffold(sgd(task, lr=0.1, batch_size=None), 2), feedback([top_k(0.5)], "always"))
    states(algorithm, holding(**TWO), 3, task, log=log, memories=memories)
    assert not log.of("failure")
    assert any("residual" in name for name in memories.get(A))

    norm = custom(nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1)), lambda out, batch: (out[:, 0] - batch["y"]).square().mean())
    algorithm = pipe(fedavg(sgd(norm, lr=0.1, batch_size=None)), feedback([top_k(0.4), int8()], "always"))
    *_, last = states(algorithm, holding(a=[1.0, 3.0], b=[5.0, 2.0]), 4, norm, log=log)
    assert not log.of("failure")
    assert tree.finite(algorithm.params(last.algorithm))


def test_a_diverged_client_is_refused_and_its_memory_stays() -> None:
    task, log, memories = line(), Log(), Kept()
    algorithm = pipe(fedavg(sgd(task, lr=0.5)), feedback([top_k(0.5)], "always"))
    states(algorithm, holding(a=[1.0], b=[math.inf]), 2, task, log=log, memories=memories)
    assert {(e.client, e.text.partition(":")[0]) for e in log.of("failure")} == {("b", "not_finite")}
    assert memories.get(ClientId("b")) == {}
