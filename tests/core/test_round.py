"""The driver against clients that are slow, silent, broken, or lie; time is virtual."""

# ruff: noqa: E731  (a script is a lambda with a type)

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from atoll.aggregators.mean import mean
from atoll.algorithms.evaluation import with_evaluation
from atoll.algorithms.fedasync import fedbuff
from atoll.algorithms.fedavg import fedavg
from atoll.errors import ConfigError, RoundError
from atoll.fold import Fold
from atoll.local.evaluate import evaluate
from atoll.local.sgd import sgd
from atoll.policy import Policy, buffered, deadline, over_selecting, synchronous
from atoll.round import RunState, Shell, run
from atoll.store.journal import Ephemeral
from atoll.types import Algorithm, Assignment, ClientId, Request, Update
from tests.core.scripted import Heard, Script, Scripted, asking, fails, says
from tests.core.small import Log, holding, line, states

START = {"w": torch.zeros(1)}


def drive(
    script: Script,
    policy: Policy,
    rounds: int = 1,
    population: str = "abcd",
    algorithm: Algorithm[Any] | None = None,
    stubborn: bool = False,
    make: type[Scripted] = Scripted,
) -> tuple[list[RunState], Scripted, Log]:
    engine, log, algorithm = make(script, stubborn), Log(), algorithm or asking()
    shell, first = Shell(engine, Ephemeral(), log), RunState(0, algorithm.init(START))
    done = list(run(first, algorithm, policy, [ClientId(c) for c in population], rounds, 0, shell))
    return done, engine, log


def heard(state: RunState, round: int = -1) -> set[str]:
    found: Heard = state.algorithm
    return set(found.rounds[round])


def told(log: Log, kind: str = "failure") -> dict[str, str]:
    return {str(e.client): e.text for e in log.of(kind)}


def after(**delays_s: float) -> Script:
    """Everybody answers, each after its own time."""
    return lambda a: [(delays_s.get(a.client, 1.0), says(a))]


def test_over_selection_closes_with_the_first() -> None:
    script = after(a=4, b=1, c=3, d=2)
    (state,), engine, _ = drive(script, over_selecting(2, factor=2.0))
    assert len(engine.asked) == 4
    assert heard(state) == {"b", "d"}
    assert engine.clock == 2
    assert engine.cancelled == [(0, "train")]
    assert state.in_flight == ()


def test_over_selection_asks_no_more_than_it_says() -> None:
    assert [over_selecting(10, f).in_flight for f in (1.0, 1.1, 1.2, 1.3)] == [10, 11, 12, 13]


def test_who_was_cancelled_and_answers_all_the_same_is_refused() -> None:
    # a is slow in round 0, and its answer of then lands while round 1 waits for everybody
    script: Script = lambda a: [(3.0 if (a.client, a.round) == ("a", 0) else 1.0 + 3 * a.round, says(a, float(a.round + 1)))]
    (_, second), engine, _ = drive(script, over_selecting(3, 4 / 3), rounds=2, stubborn=True)
    assert {(u.round, u.client) for u in engine.refused} >= {(0, "a")}
    assert all(u.round == 1 for u in engine.acknowledged[3:])
    assert second.algorithm.params["w"].tolist() == [3.0]  # 1, then 2: nothing of round 0 in round 1


@pytest.mark.parametrize("late", ["drop", "keep"])
def test_a_deadline_closes_with_who_answered(late: Any) -> None:
    script: Script = lambda a: [(12.0 if (a.client, a.round) == ("a", 0) else 1.0, says(a))]
    policy = deadline(4, timeout_s=10, late=late)
    (first, second), engine, log = drive(script, policy, rounds=2)
    assert heard(first) == {"b", "c", "d"}
    ages = {str(e.client): e.metrics["age"] for e in log.of("update") if e.round == 1}
    if late == "drop":
        assert first.in_flight == ()
        assert heard(second) == {"a", "b", "c", "d"}
        assert set(ages.values()) == {0}
        assert second.algorithm.params["w"].tolist() == [2.0]
    else:
        assert [a.client for a in first.in_flight] == ["a"]
        assert ages == {"a": 1, "b": 0, "c": 0, "d": 0}
        want = 1 + (3 + 1 / math.sqrt(2)) / 4  # a's answer is one round old
        assert float(second.algorithm.params["w"]) == pytest.approx(want)
    assert engine.clock == 12.0 if late == "keep" else 11.0


def test_a_deadline_that_nobody_met_is_an_error() -> None:
    with pytest.raises(RoundError, match=r"round 1, 'train': 0 of 4 clients answered.*min_updates is 1"):
        drive(lambda a: [(30.0, says(a))], deadline(4, timeout_s=10))


def test_a_lease_ends_and_the_slot_is_free() -> None:
    # d never answers; with two at a time, somebody else gets its place and the round goes on
    script: Script = lambda a: [] if a.client == "d" else [(1.0, says(a))]
    policy = Policy(4, 4, lease_s=60.0)
    (first, second), engine, log = drive(script, policy, rounds=2)
    assert heard(first) == heard(second) == {"a", "b", "c"}
    assert told(log) == {"d": "expired: no answer in 60 s"}
    assert engine.clock == 120.0
    assert second.in_flight == ()


def test_an_answer_after_the_lease_is_refused() -> None:
    # d answers after 70 s, when its lease of 60 has ended and e, asked in its place, is still at work
    script: Script = lambda a: [({"d": 70.0, "e": 50.0}.get(a.client, 1.0), says(a))]
    policy = Policy(4, 4, lease_s=60.0)
    for seed in range(20):
        engine, log, algorithm = Scripted(script), Log(), asking()
        shell, first = Shell(engine, Ephemeral(), log), RunState(0, algorithm.init(START))
        (state,) = run(first, algorithm, policy, [ClientId(c) for c in "abcde"], 1, seed, shell)
        if engine.asked[-1].client == "e" and len(engine.asked) == 5:
            break
    assert heard(state) == {"a", "b", "c", "e"}
    assert [(str(u.client), type(u).__name__) for u in engine.refused] == [("d", "Failure"), ("d", "Update")]


def test_a_late_answer_to_a_fresh_request_is_dropped() -> None:
    # Round 0 keeps stragglers, round 1 wants fresh answers only
    script: Script = lambda a: [(12.0 if (a.client, a.round) == ("a", 0) else 5.0, says(a, 1.0 if a.round else 100.0))]
    policy = deadline(4, timeout_s=10, late="keep")
    (first, second), engine, log = drive(script, policy, rounds=2, algorithm=asking(fresh=lambda round: round == 1))
    assert [a.client for a in first.in_flight] == ["a"]
    assert told(log, "late") == {"a": "from round 0"}
    assert heard(second) == {"b", "c", "d"}
    assert float(second.algorithm.params["w"]) == pytest.approx(101.0)
    assert second.in_flight == ()
    assert [(u.round, str(u.client)) for u in engine.refused] == [(0, "a")]


def test_a_second_answer_is_refused() -> None:
    script: Script = lambda a: [(1.0, says(a, 1.0)), (1.0, says(a, 50.0)), (2.0, says(a, 50.0))]
    (_, state), engine, _ = drive(script, synchronous(), rounds=2)
    assert state.algorithm.params["w"].tolist() == [2.0]
    assert len(engine.acknowledged) == 8
    assert all(float(u.tree["w"]) == 50.0 for u in engine.refused)


@pytest.mark.parametrize(
    "forge",
    [
        lambda a: a._replace(round=a.round + 1),
        lambda a: a._replace(round=a.round - 1),
        lambda a: a._replace(client="nobody"),
        lambda a: a._replace(work="evaluate"),
    ],
)
def test_an_answer_to_what_was_not_asked_is_refused(forge: Callable[[Assignment], Assignment]) -> None:
    script: Script = lambda a: [(0.5, says(forge(a), 99.0)), (1.0, says(a, 1.0))]
    (state,), engine, _ = drive(script, synchronous())
    assert state.algorithm.params["w"].tolist() == [1.0]
    assert len(engine.refused) == 4


def test_an_engine_that_forgets_work_does_not_stop_the_run() -> None:
    class Forgetful(Scripted):
        def available(self, clients: Sequence[ClientId]) -> Sequence[ClientId]:
            return clients

        def submit(self, assignments: Any) -> None:
            super().submit(a for a in assignments if a.client != "c")

    engine, log, algorithm = Forgetful(after()), Log(), asking()
    shell, first = Shell(engine, Ephemeral(), log), RunState(0, algorithm.init(START))
    (state,) = run(first, algorithm, Policy(), [ClientId(c) for c in "abcd"], 1, 0, shell)
    assert heard(state) == {"a", "b", "d"}
    assert told(log) == {"c": "lost: the engine holds no such work"}


# Sums of these depend on their order: 1e8 swallows what is added after it, one at a time.
VALUES = dict(zip("abcdef", (1e8, 3.3, -1e8, 2.7, 5.1, 1e-3), strict=True))


def test_early_arrivals_are_folded_in_the_order_of_the_cohort() -> None:
    bits = set()
    for delays in itertools.islice(itertools.permutations(range(6)), 0, None, 40):
        by_client = dict(zip("abcdef", map(float, delays), strict=True))
        script: Script = lambda a, d=by_client: [(d[a.client], says(a, VALUES[a.client], loss=VALUES[a.client]))]
        (state,), engine, log = drive(script, synchronous(), population="abcdef")
        assert state.algorithm.rounds[-1] == tuple(a.client for a in engine.asked)
        bits.add((float(state.algorithm.params["w"]), log.of("reduced")[0].metrics["loss"]))
    assert len(bits) == 1


def test_a_failure_does_not_hold_up_who_comes_after_it() -> None:
    bits = set()
    for delays in itertools.islice(itertools.permutations(range(6)), 0, None, 60):
        by_client = dict(zip("abcdef", map(float, delays), strict=True))
        script: Script = lambda a, d=by_client: [(d[a.client], fails(a) if a.client in "bd" else says(a, VALUES[a.client]))]
        (state,), _, _ = drive(script, synchronous(), population="abcdef")
        assert heard(state) == set("acef")
        bits.add(float(state.algorithm.params["w"]))
    assert len(bits) == 1


def test_too_few_answers_name_who_failed_and_why() -> None:
    script: Script = lambda a: [(1.0, says(a) if a.client in "ab" else fails(a, "error", f"no {a.client}"))]
    with pytest.raises(RoundError) as error:
        drive(script, synchronous(min_updates=3))
    text = str(error.value)
    assert "2 of 4 clients answered, and the policy's min_updates is 3" in text
    assert "client c failed (error: no c)" in text
    assert "client d failed (error: no d)" in text


def test_many_failures_are_counted() -> None:
    with pytest.raises(RoundError, match=r"; and 1 more$"):
        drive(lambda a: [(1.0, fails(a))], synchronous())


def test_a_policy_may_stop_at_a_failure() -> None:
    script: Script = lambda a: [(1.0, fails(a, "lost", "gone") if a.client == "c" else says(a))]
    with pytest.raises(RoundError, match=r"stops at a failure, and client c failed \(lost: gone\)"):
        drive(script, synchronous(on_failure="stop"))


BAD = {
    "not a number": (lambda a: says(a, math.nan), "not_finite"),
    "infinite": (lambda a: says(a, math.inf), "not_finite"),
    "loss not a number": (lambda a: says(a, 5.0, loss=math.nan), "not_finite"),
    "weight not a number": (lambda a: says(a, 5.0, weight=math.nan), "invalid"),
    "negative weight": (lambda a: says(a, 5.0, weight=-1.0), "invalid"),
    "infinite weight": (lambda a: says(a, 5.0, weight=math.inf), "invalid"),
    "wrong shape": (lambda a: says(a, {"w": torch.ones(2)}), "invalid"),
    "wrong name": (lambda a: says(a, {"v": torch.ones(1)}), "invalid"),
    "a name more": (lambda a: says(a, {"w": torch.ones(1), "v": torch.ones(1)}), "invalid"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("delay_s", [0.5, 2.0])
def test_one_clients_bad_update_is_dropped_and_named(name: str, delay_s: float) -> None:
    make, kind = BAD[name]
    script: Script = lambda a: [(delay_s, make(a)) if a.client == "c" else (1.0, says(a))]
    (state,), engine, log = drive(script, synchronous())
    assert heard(state) == {"a", "b", "d"}
    assert state.algorithm.params["w"].tolist() == [1.0]
    assert set(told(log)) == {"c"}
    assert told(log)["c"].startswith(f"{kind}: ")
    assert [str(u.client) for u in engine.refused] == ["c"], "the engine still holds the memory that c proposed"


def test_a_finite_sum_that_overflows_is_not_a_failure() -> None:
    script: Script = lambda a: [(1.0, says(a, {"w": torch.full((3,), 3e38)}))]
    algorithm = asking()
    engine, log = Scripted(script), Log()
    shell, first = Shell(engine, Ephemeral(), log), RunState(0, algorithm.init({"w": torch.zeros(3)}))
    list(run(first, algorithm, Policy(), [ClientId("a")], 1, 0, shell))
    assert not log.of("failure")


def test_all_clients_fail() -> None:
    with pytest.raises(RoundError, match="0 of 4 clients answered"):
        drive(lambda a: [(1.0, says(a, math.nan))], synchronous())


def test_a_client_without_examples_says_so() -> None:
    task, log = line(), Log()
    clients = {**holding(a=[4.0]), **holding(b=[]), ClientId("c"): {}}
    states(fedavg(sgd(task)), clients, 1, task, log=log)
    assert told(log) == {
        "b": "no_data: it holds no examples in its split 'train'",
        "c": "no_data: it holds no examples in its split 'train'",
    }


def test_somebody_takes_the_place_of_who_failed() -> None:
    script: Script = lambda a: [(1.0, fails(a) if a.client in "abc" else says(a))]
    (state,), engine, _ = drive(script, synchronous(3), population="abcdefgh")
    assert len(heard(state)) == 3
    assert not heard(state) & set("abc")
    assert len(engine.asked) == 3 + sum(a.client in "abc" for a in engine.asked)


def test_a_request_for_a_whole_cohort_asks_nobody_else() -> None:
    script: Script = lambda a: [(1.0, fails(a) if a.client == "b" else says(a))]
    (state,), engine, _ = drive(script, synchronous(2), algorithm=asking(cohort=4))
    assert len(engine.asked) == 4
    assert heard(state) == {"a", "c", "d"}


def test_a_whole_cohort_is_waited_for_past_the_deadline() -> None:
    (state,), engine, _ = drive(after(a=50.0), deadline(4, timeout_s=10), algorithm=asking(cohort=4))
    assert heard(state) == set("abcd")
    assert engine.clock == 50.0


def test_asynchronous_work_goes_on_between_rounds() -> None:
    # Two at a time, a step an answer: a takes 10 s, everybody else 1 s
    policy = buffered(2, buffer=2)
    done, engine, log = drive(after(a=10.0), policy, rounds=6, population="abcdef")
    assert all(len(state.in_flight) <= 2 for state in done)
    at_work = 0
    for event_round in range(6):
        at_work += sum(e.round == event_round for e in log.of("update"))
    assert at_work == 12
    ages = {str(e.client): e.metrics["age"] for e in log.of("update") if e.client == "a"}
    assert ages == {} or ages["a"] >= 1, "the slow client's work was thrown away between rounds"
    assert not engine.cancelled


def test_ages_discount_updates() -> None:
    # One at a time is answered at once, the other is three rounds late: (1 + 3)^-1/2 = 1/2
    policy = buffered(2, buffer=1)
    script: Script = lambda a: [(3.5 if a.round == 0 and a.client == slow else 1.0, says(a, 1.0))]
    slow = ""
    _, engine, _ = drive(script, policy, population="abcdefgh")
    slow = str(engine.asked[0].client)
    done, _, log = drive(script, policy, rounds=4, population="abcdefgh")
    last = log.of("update")[-1]
    assert (str(last.client), last.metrics["age"]) == (slow, 3)
    steps = [float(b.algorithm.params["w"] - a.algorithm.params["w"]) for a, b in itertools.pairwise(done)]
    assert steps[-1] == pytest.approx(0.5)


def test_judging_a_client_does_not_undo_its_training() -> None:
    """Under an asynchronous policy a client may be asked to judge a model while it still trains."""
    task, log = line(), Log()
    clients = holding(**{c: [4.0] for c in "abcdef"})
    algorithm = with_evaluation(fedbuff(sgd(task, lr=0.5, batch_size=None)), evaluate(task), sorted(clients))
    states(algorithm, clients, 4, task, policy=buffered(4, buffer=2), log=log)
    assert not log.of("failure")
    trained = log.of("update", "train")
    assert len(trained) == 8
    assert any(e.metrics["age"] > 0 for e in trained), "no work survived the end of a round"


def test_policies_that_cannot_be_are_refused() -> None:
    for wrong in (
        lambda: Policy(in_flight=0),
        lambda: Policy(timeout_s=0.0),
        lambda: Policy(in_flight=2, close_after=3),
        lambda: Policy(close_after=2, min_updates=3),
        lambda: Policy(late="sometimes"),  # type: ignore[arg-type]
        lambda: over_selecting(3, factor=0.5),
    ):
        with pytest.raises(ConfigError):
            wrong()


def test_events_tell_what_crossed_the_network() -> None:
    script: Script = lambda a: [(1.0, says(a, {"w": torch.zeros(1), "n": torch.zeros(3, dtype=torch.bfloat16)}))]
    algorithm = asking(reduce=None)
    engine, log = Scripted(script), Log()

    def round(state: Any, clients: Any) -> Any:
        from atoll.aggregators.mean import mean
        from atoll.types import Request

        yield Request("train", clients, lambda _: START, mean())
        return state

    shell, first = Shell(engine, Ephemeral(), log), RunState(0, None)
    list(run(first, algorithm._replace(round=round), Policy(), [ClientId("a")], 1, 0, shell))
    (event,) = log.of("update")
    sent = {way: event.metrics[f"bytes_{way}"] - event.metrics[f"header_{way}"] for way in ("down", "up")}
    assert sent == {"down": 4, "up": 10}


def test_a_lease_does_not_run_out_in_a_queue() -> None:
    """The second client begins at 1.5 and answers at 2.5, within its lease of 1, though it was asked at 0."""

    class OneAtATime(Scripted):
        def started(self, assignment: Assignment) -> bool:
            return assignment.client == "a" or self.now() >= 1.5

    script: Script = lambda a: [({"a": 0.9, "b": 2.5}[a.client], says(a))]
    (state,), _, log = drive(script, synchronous(lease_s=1.0), population="ab", make=OneAtATime)
    assert heard(state) == {"a", "b"}
    assert not told(log)


def test_an_algorithm_that_discounts_itself_is_not_discounted_twice() -> None:
    request = Request("train", [ClientId("a")], lambda _: {}, mean("uniform"), discount=False)
    fold = Fold(request, buffered(1, buffer=1, staleness_exponent=1.0), now=3, in_order=False)
    fold.hear(Update(0, ClientId("a"), "train", {"w": torch.ones(1)}, 1.0, {}), lambda u: lambda: u)
    assert fold.finish().tree["w"].item() == 1.0
