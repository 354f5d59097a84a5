"""Rules in whole runs: what is asked, what is refused, and runs that are stopped and go on to the same bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.algorithms.fedavg import fedavg
from atoll.algorithms.mimelite import mimelite
from atoll.algorithms.qfedavg import qfedavg
from atoll.engines.processes import processes
from atoll.engines.serial import Serial, serial
from atoll.errors import ConfigError
from atoll.federation import Federation
from atoll.local.sgd import sgd
from atoll.policy import Policy, buffered, synchronous
from atoll.rng import seed as seed_of
from atoll.selection.attach import with_selection
from atoll.selection.fair import fair
from atoll.selection.importance import importance
from atoll.selection.oort import oort
from atoll.selection.power_of_choice import power_of_choice
from atoll.selection.rule import Selection
from atoll.selection.tifl import tifl
from atoll.selection.uniform import uniform
from atoll.testing.store import same_bits
from atoll.transforms.clip import clip
from atoll.types import Answer, Dataset, Task, Update
from tests.core.small import Log, holding, line, weights
from tests.core.stopping import stopped

RULES: dict[str, Callable[[Task], Selection[Any]]] = {
    "uniform": lambda task: uniform(),
    "importance": lambda task: importance(),
    "oort": lambda task: oort(window=2),
    "power-of-choice": power_of_choice,
    "power-of-choice-last": lambda task: power_of_choice(losses="last"),
    "tifl": lambda task: tifl(tiers=3, interval=2),
    "fair": lambda task: fair(),
    "lottery": lambda task: fair("lottery"),
}
FIVE = {"a": [1.0], "b": [9.0], "c": [2.0], "d": [7.0], "e": [3.0]}


class Timed:
    """The serial engine, with times that depend on the client and the round alone."""

    def __init__(self, inner: Serial) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def results(self, timeout_s: float) -> Iterator[Answer]:
        for answer in self._inner.results(timeout_s):
            if isinstance(answer, Update):
                seconds = 1.0 + seed_of(0, answer.client) % 7 + seed_of(0, answer.client, answer.round) % 100 / 100
                answer = answer._replace(metrics={**answer.metrics, "seconds": seconds})
            yield answer


def timed(*args: Any, **options: Any) -> Any:
    return Timed(serial(*args, **options))  # type: ignore[arg-type]


def asked(log: Log, work: str = "train") -> list[list[str]]:
    """Who was heard in each round, in order."""
    rounds: dict[int, list[str]] = {}
    for event in log.of("update", work):
        rounds.setdefault(event.round, []).append(str(event.client))
    return list(rounds.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_stopped_again_and_again_on_digits(name: str, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install 'atoll[data]'")
    from atoll import classification, digits, dirichlet, mlp
    from atoll.rng import seeded

    data = digits(clients=10, partition=dirichlet(0.3))

    def federation() -> Federation:
        with seeded(1):
            task = classification(mlp(64, [16], 10))
        local = sgd(task, lr=0.1, batch_size=8, epochs=2)
        return Federation(
            task, data, fedavg(local), synchronous(3), [clip(2.0)], timed, evaluate_every=2, selection=RULES[name](task), seed=3
        )

    wanted = federation().run(8)
    before = wanted.history("baseline", "loss")[0][1]
    assert wanted.metrics["loss"] < 0.8 * before
    found, _, stops = stopped(federation, 8, tmp_path, 4, 30)
    assert stops >= 2
    assert same_bits(dict(found.params), dict(wanted.params))


def test_uniform_is_the_run_without_a_rule() -> None:
    held, task = holding(**FIVE), line()
    plain, ruled = Log(), Log()
    algorithm = fedavg(sgd(task))
    without = weights(algorithm, held, 4, task, policy=synchronous(2), log=plain)
    wrapped = with_selection(algorithm, uniform(), synchronous(2), sorted(held))
    assert weights(wrapped, held, 4, task, policy=synchronous(2), log=ruled) == without
    assert asked(plain) == asked(ruled)


def test_power_of_choice_asks_for_losses_first() -> None:
    # All five are candidates; from w = 0 the largest losses are those of b (9) and d (7), with lr 0.5 w = 4 after round 1.
    held, task, log = holding(**FIVE), line(), Log()
    algorithm = with_selection(fedavg(sgd(task, lr=0.5)), power_of_choice(task, d=5), synchronous(2), sorted(held))
    found = weights(algorithm, held, 2, task, policy=synchronous(2), log=log)
    assert [len(one) for one in asked(log, "probe")] == [5, 5]
    assert found[0] == 4.0
    first, second = asked(log)
    assert first == ["b", "d"]
    assert second in (["b", "a"], ["b", "d"])  # from 4 it is furthest to 9, then as far to 1 as to 7


def test_fair_turns_in_a_run() -> None:
    held, task, log = holding(**FIVE), line(), Log()
    algorithm = with_selection(fedavg(sgd(task)), fair(), synchronous(2), sorted(held))
    weights(algorithm, held, 5, task, policy=synchronous(2), log=log)
    assert set(Counter(name for one in asked(log) for name in one).values()) == {2}


@pytest.mark.parametrize("make", [qfedavg, mimelite])
@pytest.mark.parametrize("name", ["fair", "importance", "oort", "power-of-choice"])
def test_algorithms_of_two_requests(make: Any, name: str) -> None:
    held, task, log = holding(**FIVE), line(), Log()
    algorithm = with_selection(make(sgd(task), task), RULES[name](task), synchronous(2), sorted(held))
    found = weights(algorithm, held, 4, task, policy=synchronous(2), log=log)
    assert [len(one) for one in asked(log)] == [2] * 4
    assert len(set(found)) == 4


@pytest.mark.parametrize("name", [name for name in RULES if name != "importance"])
def test_under_an_asynchronous_policy(name: str) -> None:
    held, task, log = holding(**FIVE), line(), Log()
    algorithm = with_selection(fedavg(sgd(task)), RULES[name](task), buffered(3, 2), sorted(held))
    weights(algorithm, held, 5, task, policy=buffered(3, 2), log=log)
    assert [len(one) for one in asked(log)] == [2] * 5


def test_who_fails_is_replaced_by_the_next_in_order() -> None:
    held, log = dict(holding(**FIVE)), Log()
    held["b"] = {"test": held["b"]["test"]}  # nothing to train on
    task = line()
    algorithm = with_selection(fedavg(sgd(task)), fair(), synchronous(2), sorted(held))
    weights(algorithm, held, 4, task, policy=synchronous(2), log=log)
    assert [len(one) for one in asked(log)] == [2] * 4
    tries = Counter(str(e.client) for e in log.events if e.kind in ("update", "failure") and e.work == "train")
    assert tries["b"] <= 2, "it was asked no more often than the others"


def test_a_client_that_tells_no_loss_is_named() -> None:
    held, task = holding(**FIVE), line()
    silent = fedavg(sgd(task))
    local = silent.local["train"]

    def final(*args: Any) -> Any:
        update, memory = local.final(*args)
        return update._replace(metrics={}), memory

    quiet = silent._replace(local={"train": local._replace(final=final)})
    algorithm = with_selection(quiet, oort(), synchronous(2), sorted(held))
    with pytest.raises(ConfigError, match=r"'oort' learns from 'loss', which client '.' does not tell"):
        weights(algorithm, held, 1, task, policy=synchronous(2))


def test_what_does_not_go_together_is_refused_when_the_federation_is_built() -> None:
    held, task = holding(**FIVE), line()
    with pytest.raises(ConfigError, match="d = 1 is below the 2 clients of a round"):
        Federation(task, Dataset("five", held, None), fedavg(sgd(task)), Policy(2), selection=power_of_choice(task, d=1))
    evaluating = fedavg(sgd(task))._replace(local={})
    with pytest.raises(ConfigError, match="needs an algorithm with work 'train'"):
        Federation(task, Dataset("five", held, None), evaluating, Policy(2), selection=fair())


@pytest.mark.parametrize("name", ["importance", "power-of-choice"])
def test_processes_give_the_same_bits(name: str) -> None:
    held, task = holding(**FIVE), line()
    algorithm = with_selection(fedavg(sgd(task)), RULES[name](task), synchronous(2), sorted(held))
    found = [
        weights(algorithm, held, 3, task, policy=synchronous(2), engine=engine, **options)
        for engine, options in ((serial, {}), (processes, {"workers": 2}))
    ]
    assert found[0] == found[1]


def test_traced_work_tells_what_the_rule_measures() -> None:
    held, task, log = holding(**FIVE), line(), Log()
    algorithm = with_selection(fedavg(sgd(task)), importance(), synchronous(2), sorted(held))
    weights(algorithm, held, 3, task, policy=synchronous(2), log=log, compute="traced")
    assert all({"update_norm", "update_weight"} <= set(event.metrics) for event in log.of("update", "train"))
