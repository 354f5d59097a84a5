"""Every algorithm against numbers worked out on paper.

The model is one weight w and x = 1, so grad F_k(w) = w - Y_k with Y_a = 1 (1 example) and Y_b = 5 (3 examples). At
lr = 1/2 a plain step halves the distance to Y_k: two steps from w give D_k = 3/4 (Y_k - w).
"""

from __future__ import annotations

import math

import pytest
import torch

from atoll import server_opt
from atoll.algorithms.evaluation import with_evaluation
from atoll.algorithms.fedasync import fedasync, fedbuff
from atoll.algorithms.fedavg import fedadagrad, fedadam, fedavg, fedavgm, fedyogi
from atoll.algorithms.feddyn import feddyn
from atoll.algorithms.fednova import fednova
from atoll.algorithms.fedprox import fedprox
from atoll.algorithms.fedsgd import fedsgd
from atoll.algorithms.finetuning import with_finetuning
from atoll.algorithms.mimelite import mimelite
from atoll.algorithms.qfedavg import qfedavg
from atoll.algorithms.scaffold import scaffold
from atoll.errors import ConfigError
from atoll.local.adamw import adamw
from atoll.local.evaluate import evaluate
from atoll.local.script import script
from atoll.local.sgd import sgd
from atoll.policy import buffered
from atoll.store.memories import Kept
from atoll.types import ClientId, Local, Task
from tests.core.small import TWO, Log, holding, line, states, weights


def two_steps(task: Task, lr: float = 0.5) -> Local:
    return sgd(task, lr=lr, batch_size=None, epochs=2)


def near(*values: float) -> object:
    return pytest.approx(list(values), rel=1e-6, abs=1e-7)


def test_fedsgd() -> None:
    task = line()
    # w1 = 0 + .5 (1/4 (1 - 0) + 3/4 (5 - 0)) = 2; w2 = 2 + .5 (4 - 2) = 3
    assert weights(fedsgd(task, lr=0.5), holding(**TWO), 2, task) == near(2, 3)
    # v1 = 2, w1 = 2; v2 = .5 2 + .5 (4 - 2) = 2, w2 = 4
    assert weights(fedsgd(task, lr=0.5, momentum=0.5), holding(**TWO), 2, task) == near(2, 4)


def test_fedavg() -> None:
    task = line()
    # D = 3/4 (4 - w): w1 = 3, w2 = 3.75; with uniform weights 3/4 (3 - w): 2.25, 2.8125
    assert weights(fedavg(two_steps(task)), holding(**TWO), 2, task) == near(3, 3.75)
    assert weights(fedavg(two_steps(task), weights="uniform"), holding(**TWO), 2, task) == near(2.25, 2.8125)


def test_fedprox() -> None:
    task = line()
    # y -= .5 ((y - Y) + (y - w)): the first step goes to (w + Y)/2, where both pulls cancel. D = (4 - w)/2
    assert weights(fedprox(two_steps(task), mu=1.0), holding(**TWO), 2, task) == near(2, 3)


def test_fedavgm() -> None:
    task = line()
    # D1 = 3, v = 3, w = 3; D2 = .75, v = .5 3 + .75 = 2.25, w = 5.25
    assert weights(fedavgm(two_steps(task), lr=1.0, beta=0.5), holding(**TWO), 2, task) == near(3, 5.25)
    # D1 = 3, v = 3, step 3 + .5 3 = 4.5; D2 = .75 (4 - 4.5) = -.375, v = 1.5 - .375 = 1.125, step -.375 + .5625 = .1875
    assert weights(fedavgm(two_steps(task), lr=1.0, beta=0.5, nesterov=True), holding(**TWO), 2, task) == near(4.5, 4.6875)


def test_fedadam() -> None:
    task, algorithm = line(), fedadam(two_steps(line()), lr=1.0, b1=0.5, b2=0.75, tau=1.0)
    algorithm = fedadam(two_steps(task), lr=1.0, b1=0.5, b2=0.75, tau=1.0)
    # D = 3; m = 1.5; v = .75 1 + .25 9 = 3
    w1 = 1.5 / (math.sqrt(3) + 1)
    d2 = 0.75 * (4 - w1)
    w2 = w1 + (0.75 + 0.5 * d2) / (math.sqrt(2.25 + 0.25 * d2**2) + 1)
    assert weights(algorithm, holding(**TWO), 2, task) == near(w1, w2)


def test_fedyogi() -> None:
    task = line()
    # D = 3; m = 1.5; v = 1 - .25 9 sign(1 - 9) = 3.25. Then D is smaller than the root of v, and v falls.
    w1 = 1.5 / (math.sqrt(3.25) + 1)
    d2 = 0.75 * (4 - w1)
    v2 = 3.25 - 0.25 * d2**2 * (1 if d2**2 < 3.25 else -1)
    w2 = w1 + (0.75 + 0.5 * d2) / (math.sqrt(v2) + 1)
    assert weights(fedyogi(two_steps(task), 1.0, 0.5, 0.75, 1.0), holding(**TWO), 2, task) == near(w1, w2)


def test_fedadagrad() -> None:
    task = line()
    w1 = 3 / (math.sqrt(10) + 1)  # v = 1 + 9
    d2 = 0.75 * (4 - w1)
    w2 = w1 + d2 / (math.sqrt(10 + d2**2) + 1)
    assert weights(fedadagrad(two_steps(task), lr=1.0, tau=1.0), holding(**TWO), 2, task) == near(w1, w2)


def test_scaffold() -> None:
    task, memories = line(), Kept()
    # Round 1, c = c_k = 0: D_a = .75, D_b = 3.75, w = 2.25. K lr = 1, so c_k' = -D_k: c_a = -.75, c_b = -3.75, c = -2.25.
    # Round 2 from 2.25: a follows (y - 1) + .75 - 2.25 = y - 2.5 to 2.5 - .25/4 = 2.4375;
    # b follows (y - 5) + 3.75 - 2.25 = y - 3.5 to 3.5 - 1.25/4 = 3.1875; the mean is 2.8125.
    # c_a' = -.75 + 2.25 + (2.25 - 2.4375) = 1.3125; c_b' = -3.75 + 2.25 + (2.25 - 3.1875) = -2.4375; c = -.5625.
    algorithm = scaffold(two_steps(task), population=2)
    first, second = states(algorithm, holding(**TWO), 2, task, memories=memories)
    assert float(first.algorithm.params["weight"]) == pytest.approx(2.25)
    assert float(first.algorithm.control["weight"]) == pytest.approx(-2.25)
    assert float(second.algorithm.params["weight"]) == pytest.approx(2.8125)
    assert float(second.algorithm.control["weight"]) == pytest.approx(-0.5625)
    assert float(memories.get(ClientId("a"))["scaffold/weight"]) == pytest.approx(1.3125)
    assert float(memories.get(ClientId("b"))["scaffold/weight"]) == pytest.approx(-2.4375)


def test_scaffold_counts_who_was_not_asked() -> None:
    task = line()
    # N = 8: after one round c = 2/8 mean(c_k') = -2.25 / 4; the server's lr of 2 doubles the step
    (state,) = states(scaffold(two_steps(task), population=8, lr=2.0), holding(**TWO), 1, task)
    assert float(state.algorithm.control["weight"]) == pytest.approx(-0.5625)
    assert float(state.algorithm.params["weight"]) == pytest.approx(4.5)


def test_fednova_with_unequal_steps() -> None:
    task = line()
    # Batches of one: a takes 1 step, D = .5, a_a = 1; b takes 3, D = 7/8 5 = 4.375, a_b = 3. p = (1/4, 3/4).
    # sum p a = 2.5; sum p D/a = .125 + .75 4.375/3 = 1.21875; w = 3.046875
    assert weights(fednova(sgd(task, lr=0.5, batch_size=1)), holding(**TWO), 1, task) == near(3.046875)


def test_fednova_with_momentum() -> None:
    task = line()
    # a: D = .5, a_a = 1. b: v = -5, y = 2.5; v = -2.5 - 2.5 = -5, y = 5; v = -2.5, y = 6.25. a_b = 1 + 1.5 + 1.75 = 4.25
    # sum p a = .25 + .75 4.25 = 3.4375; sum p D/a = .125 + .75 6.25/4.25
    want = 3.4375 * (0.125 + 0.75 * 6.25 / 4.25)
    assert weights(fednova(sgd(task, lr=0.5, batch_size=1, momentum=0.5)), holding(**TWO), 1, task) == near(want)


def test_fednova_with_a_proximal_term() -> None:
    task = line()
    # mu = 1: a_a = 1, D_a = .5; b stops at the middle: D_b = 2.5; a_b = (1 - .5^3) / .5 = 1.75
    want = (0.25 + 0.75 * 1.75) * (0.125 + 0.75 * 2.5 / 1.75)
    assert weights(fednova(sgd(task, lr=0.5, batch_size=1), mu=1.0), holding(**TWO), 1, task) == near(want)


def test_feddyn() -> None:
    task, memories = line(), Kept()
    # Round 1, alpha = 1: as FedProx, D_a = .5, D_b = 2.5; h = -1.5; w = 1.5 + 1.5 = 3; g_a = -.5, g_b = -2.5.
    # Round 2: a follows (y - 1) + .5 + (y - 3) = 2y - 3.5 to 1.75, b follows (y - 5) + 2.5 + (y - 3) to 2.75.
    # mean D = -.75; h = -1.5 + .75 = -.75; w = 3 - .75 + .75 = 3, the optimum of the clients' mean; g_a = .75, g_b = -2.25
    algorithm = feddyn(two_steps(task), population=2, alpha=1.0)
    first, second = states(algorithm, holding(**TWO), 2, task, memories=memories)
    assert [float(s.algorithm.params["weight"]) for s in (first, second)] == near(3, 3)
    assert [float(s.algorithm.h["weight"]) for s in (first, second)] == near(-1.5, -0.75)
    assert float(memories.get(ClientId("a"))["feddyn/weight"]) == pytest.approx(0.75)
    assert float(memories.get(ClientId("b"))["feddyn/weight"]) == pytest.approx(-2.25)


def test_qfedavg() -> None:
    task, memories = line(), Kept()
    # L = 2. F_a = .5, F_b = 12.5; L D: 1.5 and 7.5. Delta: .5 1.5 = .75, 12.5 7.5 = 93.75.
    # h = q F^(q-1) |L D|^2 + L F^q, q = 1: 2.25 + 1 = 3.25, 56.25 + 25 = 81.25. w = 94.5 / 84.5
    (state,) = states(qfedavg(two_steps(task), task, q=1.0), holding(**TWO), 1, task, memories=memories)
    assert float(state.algorithm.params["weight"]) == pytest.approx(94.5 / 84.5)
    assert memories.get(ClientId("a")) == {}, "the loss that was measured is of no use in a later round"


def test_qfedavg_with_a_square() -> None:
    task = line()
    # q = 2: F^2 L D = .25 1.5, 156.25 7.5; h = 2 F |L D|^2 + L F^2: 2.25 + .5, 25 56.25 + 312.5
    want = (0.375 + 1171.875) / (2.75 + 1718.75)
    assert weights(qfedavg(two_steps(task), task, q=2.0), holding(**TWO), 1, task) == near(want)


def test_mimelite() -> None:
    task = line()
    # beta = .5. Round 1, m = 0: a step leaves 3/4 of the distance; D = 7/16 (Y - w); w = 7/16 3 = 1.3125.
    # m = .5 mean(0 - Y) = -1.5. Round 2 follows .5 (y - Y - 1.5): D = 7/16 (Y + 1.5 - w);
    # w = 1.3125 + 7/16 (4.5 - 1.3125) = 2.70703125; m = .5 (1.3125 - 3) - .75 = -1.59375
    first, second = states(mimelite(two_steps(task), task, beta=0.5), holding(**TWO), 2, task)
    assert [float(s.algorithm.params["weight"]) for s in (first, second)] == near(1.3125, 2.70703125)
    assert [float(s.algorithm.momentum["weight"]) for s in (first, second)] == near(-1.5, -1.59375)


def order_of(log: Log) -> list[str]:
    return [str(e.client) for e in log.of("update", "train")]


def test_fedbuff() -> None:
    task, log = line(), Log()
    clients = holding(a=[1.0], b=[5.0], c=[9.0])
    goal = {"a": 1.0, "b": 5.0, "c": 9.0}
    # Two at work, a step after each answer. The first two begin at w = 0. The third began at w1, beside the second.
    got = weights(fedbuff(two_steps(task), lr=0.5), clients, 3, task, policy=buffered(2, buffer=1), log=log)
    x, y, z = (goal[c] for c in order_of(log))
    w1 = 0.5 * 0.75 * x
    w2 = w1 + 0.5 * 0.75 * y / math.sqrt(2)  # began at version 0, lands at 1
    w3 = w2 + 0.5 * 0.75 * (z - w1) / math.sqrt(2)  # began at 1, lands at 2
    assert got == near(w1, w2, w3)
    assert [e.metrics["age"] for e in log.of("update")] == [0, 1, 1]


def test_fedbuff_divides_by_the_buffer_and_not_by_the_discounts() -> None:
    task, log = line(), Log()
    clients = holding(a=[4.0], b=[4.0], c=[4.0])
    # All alike: w1 = (3 + 3)/2. One is left from version 0: its update 3 counts 1/sqrt 2; the new one is .75 (4 - 3).
    got = weights(fedbuff(two_steps(task)), clients, 2, task, policy=buffered(3, buffer=2), log=log)
    assert got == near(3, 3 + (3 / math.sqrt(2) + 0.75) / 2)


def test_fedasync() -> None:
    task, log = line(), Log()
    clients = holding(a=[1.0], b=[5.0], c=[9.0])
    goal = {"a": 1.0, "b": 5.0, "c": 9.0}
    policy = buffered(2, buffer=1, staleness_exponent=0)
    got = weights(fedasync(two_steps(task), alpha=0.6), clients, 2, task, policy=policy, log=log)
    x, y = (goal[c] for c in order_of(log))
    w1 = 0.4 * 0 + 0.6 * 0.75 * x
    mix = 0.6 / math.sqrt(2)
    assert got == near(w1, (1 - mix) * w1 + mix * 0.75 * y)


def test_fedasync_with_a_proximal_term() -> None:
    task = line()
    # rho = 1: the client stops at (w + Y)/2 = 2.5; w = .5 2.5
    policy = buffered(1, buffer=1, staleness_exponent=0)
    assert weights(fedasync(two_steps(task), alpha=0.5, rho=1.0), holding(b=[5.0]), 1, task, policy=policy) == near(1.25)


def test_evaluation_of_the_whole_and_of_each_client() -> None:
    task, log = line(), Log()
    clients = holding(**TWO)
    algorithm = with_evaluation(fedavg(two_steps(task)), evaluate(task, batch_size=2), sorted(clients))
    states(algorithm, clients, 2, task, log=log)
    # At w = 0: F_a = .5, F_b = 12.5, weighted (.5 + 37.5)/4 = 9.5. At w = 3: 2 and 2. At 3.75: 2.75^2/2, 1.25^2/2
    assert [e.metrics["loss"] for e in log.of("reduced", "baseline")] == near(9.5)
    after = 0.25 * 2.75**2 / 2 + 0.75 * 1.25**2 / 2
    assert [e.metrics["loss"] for e in log.of("reduced", "evaluate")] == near(2, after)
    told = {e.client: e.metrics["loss"] for e in log.of("update", "baseline")}
    assert told == {"a": pytest.approx(0.5), "b": pytest.approx(12.5)}


def test_evaluation_every_other_round_and_after_the_last() -> None:
    task, log = line(), Log()
    clients = holding(**TWO)
    states(with_evaluation(fedavg(two_steps(task)), evaluate(task), sorted(clients), 2, last=5), clients, 5, task, log=log)
    assert [e.round for e in log.of("reduced", "evaluate")] == [1, 3, 4]
    assert [e.round for e in log.of("reduced", "baseline")] == [0]


def test_finetuning() -> None:
    task, log, memories = line(), Log(), Kept()
    clients = holding(**TWO)
    tune, judge = sgd(task, lr=0.5, batch_size=None), evaluate(task)
    algorithm = with_finetuning(fedavg(two_steps(task)), tune, judge, sorted(clients), after=1)
    assert weights(algorithm, clients, 2, task, log=log, memories=memories) == near(3, 3.75)
    # From w = 3 one step halves the distance: a at 2, b at 4
    assert float(memories.get(ClientId("a"))["personal/weight"]) == pytest.approx(2)
    assert float(memories.get(ClientId("b"))["personal/weight"]) == pytest.approx(4)
    for work, a, b in (("global", 2.0, 2.0), ("personal", 0.5, 0.5)):
        told = {e.client: e.metrics["loss"] for e in log.of("update", work)}
        assert told == {"a": pytest.approx(a), "b": pytest.approx(b)}
    up = [e.metrics["bytes_up"] - e.metrics["header_up"] for e in log.of("update", "finetune")]
    assert up == [0, 0], "a personal model left its client"


def test_a_server_optimiser_of_ones_own() -> None:
    task = line()
    assert weights(fedprox(two_steps(task), 1.0, server_opt.sgd(0.5)), holding(**TWO), 1, task) == near(1)
    assert weights(fednova(two_steps(task), server_opt=server_opt.sgd(0.5)), holding(**TWO), 1, task) == near(1.5)


def test_what_an_algorithm_is_not_defined_for_is_refused() -> None:
    task = line()
    heavy = sgd(task, momentum=0.9)
    with pytest.raises(ConfigError, match="plain SGD"):
        scaffold(heavy, population=2)
    with pytest.raises(ConfigError, match="plain SGD"):
        mimelite(adamw(task), task)
    with pytest.raises(ConfigError, match="accumulation vector"):
        fednova(adamw(task))
    with pytest.raises(ConfigError, match="accumulation vector"):
        fednova(heavy, mu=0.1)
    with pytest.raises(ConfigError, match="accumulation vector"):
        fednova(sgd(task, momentum=0.9, nesterov=True))
    with pytest.raises(ConfigError, match="hides"):
        fedprox(script(task, lambda module, loader: None))
    with pytest.raises(ConfigError, match="one correction"):
        fedprox(fedprox(sgd(task)).local["train"])
    for wrong in (
        lambda: fedprox(sgd(task), mu=-1),
        lambda: scaffold(sgd(task), population=0),
        lambda: feddyn(sgd(task), population=2, alpha=0),
        lambda: qfedavg(sgd(task), task, q=-1),
        lambda: mimelite(sgd(task), task, beta=1.0),
        lambda: fedasync(sgd(task), alpha=0),
        lambda: fedsgd(task, lr=0),
        lambda: sgd(task, lr=-0.1),
        lambda: with_evaluation(fedavg(sgd(task)), evaluate(task), ["a"], every=0),
        lambda: with_finetuning(fedavg(sgd(task)), sgd(task), evaluate(task), [], after=1),
    ):
        with pytest.raises(ConfigError):
            wrong()


def test_the_gradient_at_the_start_leaves_a_clients_memory_alone() -> None:
    task, memories = line(), Kept()
    memories.propose(ClientId("a"), 0, "before", {"own": torch.ones(1)})
    memories.commit(ClientId("a"), 0, "before")
    states(mimelite(two_steps(task), task), holding(**TWO), 1, task, memories=memories)
    assert memories.get(ClientId("a"))["own"].tolist() == [1.0]
