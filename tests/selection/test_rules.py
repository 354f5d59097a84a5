"""Each rule against values worked out by hand, and the laws that all of them keep."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import ConfigError
from atoll.rng import permutation
from atoll.selection.fair import fair
from atoll.selection.importance import importance
from atoll.selection.ledger import Ledger, read, written
from atoll.selection.oort import Row, State, oort, utilities
from atoll.selection.power_of_choice import power_of_choice
from atoll.selection.rule import Call, Chosen, Selection, Told
from atoll.selection.tifl import tifl
from atoll.selection.uniform import uniform
from atoll.store.state import load, save
from atoll.types import ClientId
from tests.core.small import line

RULES: dict[str, Selection[Any]] = {
    "uniform": uniform(),
    "importance": importance(),
    "importance-loss": importance("loss"),
    "oort": oort(window=2, max_picks=4),
    "power-of-choice": power_of_choice(line()),
    "power-of-choice-last": power_of_choice(losses="last"),
    "tifl": tifl(tiers=3, interval=2),
    "tifl-credits": tifl(tiers=3, choice="uniform", credits=2),
    "fair": fair(),
    "lottery": fair("lottery"),
}


def ids(names: str) -> list[ClientId]:
    return [ClientId(name) for name in names]


def told(round: int, heard: str, *, asked: str = "", **metrics: Sequence[float]) -> Told:
    """What `heard` told, a value each."""
    each = [{name: float(values[i]) for name, values in metrics.items()} for i in range(len(heard))]
    return Told(round, ids(asked), ids(heard), each)


def answers(clients: Sequence[ClientId], round: int) -> list[dict[str, float]]:
    """Metrics of some clients, different in every round."""
    number = [int(client[1:]) for client in clients]
    return [
        {
            "loss": 1.0 + (7 * i + round) % 5,
            "seconds": 1.0 + i % 4,
            "examples": 10.0 + i,
            "update_norm": 1.0 + (3 * i + round) % 7,
            "update_weight": 10.0 + i,
        }
        for i in number
    ]


def simulated(
    rule: Selection[Any], rounds: int, clients: int = 12, wanted: int = 4, folder: Path | None = None
) -> list[Chosen[Any]]:
    """Rounds in which everybody answers; through a checkpoint after each where there is a folder."""
    everyone, state, out = [ClientId(f"c{i}") for i in range(clients)], rule.init(), []
    for round in range(rounds):
        candidates = [everyone[i] for i in permutation(clients, 5, round).tolist()]
        call = Call(
            round, candidates, wanted, {c: m["loss"] for c, m in zip(candidates, answers(candidates, round), strict=True)}
        )
        out.append(rule.order(state, call))
        heard = out[-1].clients[:wanted]
        state = rule.observe(out[-1].state, Told(round, heard, heard, answers(heard, round)))
        if folder:
            save(state, folder / "state")
            state = load(rule.init(), folder / "state")
    return out


@pytest.mark.parametrize("name", RULES)
def test_an_order_has_candidates_once_each_and_enough_of_them(name: str) -> None:
    for chosen in simulated(RULES[name], 30):
        assert len(set(chosen.clients)) == len(chosen.clients) >= 4
        assert RULES[name].unbiased or len(chosen.clients) == 12, "all the others stand in for who fails"


@pytest.mark.parametrize("name", RULES)
def test_the_same_choices_through_checkpoints(name: str, tmp_path: Path) -> None:
    plain, kept = simulated(RULES[name], 12), simulated(RULES[name], 12, folder=tmp_path)
    assert [c.clients for c in plain] == [c.clients for c in kept]
    assert [c.shares for c in plain] == [c.shares for c in kept]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("few", [0, 1, 3])
def test_fewer_candidates_than_are_wanted_are_all_asked(name: str, few: int) -> None:
    rule, everyone = RULES[name], [ClientId(f"c{i}") for i in range(8)]
    heard = Told(0, everyone[:5], everyone[:5], answers(everyone[:5], 0))
    for state in (rule.init(), rule.observe(rule.init(), heard)):
        chosen = rule.order(state, Call(1, everyone[3 : 3 + few], 4))
        assert sorted(chosen.clients) == everyone[3 : 3 + few]
        assert chosen.shares is None or all(factor == 1.0 for factor in chosen.shares.factors.values())


@pytest.mark.parametrize("name", [name for name in RULES if name != "uniform"])
def test_a_rule_remembers_clients_that_were_seen_alone(name: str) -> None:
    rule = RULES[name]
    state = simulated(rule, 3, clients=100)[-1].state
    known = state if isinstance(state, Ledger) else state.known
    assert len(known.clients) <= 8, "two rounds of four were observed before the third was chosen"


def test_another_seed_chooses_otherwise() -> None:
    for make in (importance, oort, tifl, lambda seed: fair("lottery", seed=seed)):
        seen = [tuple(tuple(c.clients[:4]) for c in simulated(make(seed=seed), 15)) for seed in (0, 0, 1)]
        assert seen[0] == seen[1] != seen[2]


# Oort


def test_the_utility_by_hand() -> None:
    # Of utilities 0, 10 and 20 the 95th percentile is 19, of seconds 1, 2, 4 the 30th 1.6. Round 10, alpha 2:
    # a: (0 + sqrt(0.1 ln 10 / 1)) * 1;  b: (10/19 + sqrt(0.1 ln 10 / 4)) * (1.6/2)^2;  c: (19/19 + sqrt(0.1 ln 10 / 9)) (1.6/4)^2
    rows = {"a": Row(0.0, 1.0, 1.0, 1.0), "b": Row(10.0, 2.0, 4.0, 1.0), "c": Row(20.0, 4.0, 9.0, 1.0)}
    found = utilities({ClientId(c): row for c, row in rows.items()}, 10, 2.0, 0.3)
    assert found == pytest.approx({"a": 0.479853, "b": 0.490397, "c": 0.185592}, abs=1e-5)


def test_oort_explores_by_its_share() -> None:
    everyone = [ClientId(f"c{i}") for i in range(100)]
    known = {c: Row(1.0, 1.0, 1.0, 1.0) for c in everyone[:50]}
    for round, wanted in ((0, 9), (10, 7), (200, 2)):  # 0.9, 0.9 * 0.98^10 = 0.735, 0.2 of ten
        chosen = oort().order(State(written(known)), Call(round, everyone, 10)).clients[:10]
        assert sum(c not in known for c in chosen) == wanted
    few = oort().order(State(written(known)), Call(0, everyone[:53], 10)).clients[:10]
    assert sum(c not in known for c in few) == 3, "who is left to explore, the rest by utility"


def test_oort_admits_what_reaches_the_cut_off() -> None:
    # Utilities 100, 98, 50, 1 in round 1: for two places the cut-off is 0.95 of the second's, so b and a, never c or d.
    known = {ClientId(c): Row(u, 1.0, 1.0, 1.0) for c, u in zip("abcd", (100.0, 98.0, 50.0, 1.0), strict=True)}
    for seed in range(20):
        chosen = oort(seed=seed).order(State(written(known)), Call(0, ids("dcba"), 2))
        assert set(chosen.clients[:2]) == {"a", "b"}
        assert chosen.clients[2:] == ids("cd"), "the best of the rest stands in first"


def test_oort_passes_over_who_was_picked_too_often() -> None:
    rule, state = oort(max_picks=2, alpha=0.0), oort().init()
    for round in range(2):
        state = rule.observe(state, told(round, "ab", asked="abc", loss=[9, 1], examples=[1, 1]))
    assert read(state.known)["a"][3] == 2
    state = rule.observe(state, told(2, "c", loss=[1], examples=[1]))
    assert rule.order(state, Call(500, ids("abc"), 1)).clients == ids("cab")


def test_a_failed_client_counts_as_picked() -> None:
    rule = oort(alpha=0.0)
    state = rule.observe(rule.init(), told(0, "ab", asked="ab", loss=[1, 1], examples=[1, 1]))
    state = rule.observe(state, told(1, "a", asked="ab", loss=[1], examples=[1]))
    assert [row[3] for row in read(state.known).values()] == [2, 2]
    assert [row[2] for row in read(state.known).values()] == [2, 1], "but it was not heard"


def test_the_pacer_prefers_longer_rounds_when_less_is_gained() -> None:
    rule = oort(window=2)
    state = rule.init()
    for round, loss in enumerate((5.0, 5.0, 4.0, 4.0, 6.0, 6.0)):
        state = rule.observe(state, told(round, "a", loss=[loss], examples=[1], seconds=[1]))
    assert state.pace == pytest.approx(0.35)  # raised once, after round 4; after round 6 more was gained
    assert state.gained == (4.0, 4.0, 6.0, 6.0)


# Power of choice


def test_the_largest_losses_of_d_candidates() -> None:
    rule = power_of_choice(line(), d=3)
    assert rule.probe is not None
    call = Call(0, ids("abcd"), 1)
    assert rule.probe.clients(call) == ids("abc")
    chosen = rule.order(rule.init(), call._replace(losses={ClientId("a"): 1.0, ClientId("b"): 3.0}))
    assert chosen.clients == ids("bacd"), "c did not answer the probe, d was not asked"


def test_last_losses_and_infinity_for_who_never_trained() -> None:
    rule = power_of_choice(losses="last", d=3)
    assert rule.probe is None
    state = rule.observe(rule.init(), told(0, "ab", loss=[1, 5]))
    assert rule.order(state, Call(1, ids("abcd"), 1)).clients == ids("cbad")


# TiFL


def heard_at(*seconds: float) -> Told:
    """a, b, c, ... with these times, and losses 1, 2, 3, ..."""
    return told(0, "abcdefgh"[: len(seconds)], seconds=seconds, loss=[i + 1.0 for i in range(len(seconds))])


def test_a_cohort_is_of_one_tier() -> None:
    rule = tifl(tiers=2, choice="uniform")
    state = rule.observe(rule.init(), heard_at(1, 9, 2, 8))
    seen = Counter(frozenset(rule.order(state, Call(round, ids("abcd"), 2)).clients[:2]) for round in range(400))
    assert set(seen) == {frozenset("ac"), frozenset("bd")}
    assert all(150 < n < 250 for n in seen.values())


def test_rounds_that_profile_are_as_frequent_as_the_unheard() -> None:
    rule = tifl(tiers=2, choice="uniform")
    assert rule.order(rule.init(), Call(0, ids("abcd"), 2)).state.tier == -1, "nobody was heard: the round profiles"
    state = rule.observe(rule.init(), heard_at(1, 9, 2, 8))
    first = Counter(rule.order(state, Call(round, ids("abcdefgh"), 1)).clients[0] in ids("efgh") for round in range(400))
    assert 150 < first[True] < 250


def test_a_tier_with_too_few_is_filled_from_the_nearest() -> None:
    rule = tifl(tiers=3, choice="uniform")
    state = rule.observe(rule.init(), heard_at(1, 2, 50, 51, 900, 901))
    for round in range(30):
        chosen = rule.order(state, Call(round, ids("fedcba"), 4))
        if chosen.state.tier == 2:
            assert [set(chosen.clients[:2]), set(chosen.clients[2:4])] == [{"e", "f"}, {"c", "d"}]
            return
    pytest.fail("the slowest tier was never drawn")


def test_spent_credits_close_a_tier() -> None:
    rule = tifl(tiers=2, choice="uniform", credits=3)
    state, tiers = rule.observe(rule.init(), heard_at(1, 9, 2, 8)), []
    for round in range(6):
        chosen = rule.order(state, Call(round, ids("abcd"), 2))
        state = chosen.state
        tiers.append(state.tier)
    assert Counter(tiers) == {0: 3, 1: 3}
    assert state.credits == (0, 0)
    assert len(rule.order(state, Call(9, ids("abcd"), 2)).clients) == 4, "all spent: every tier again"


def test_a_tier_that_learns_nothing_gives_way_to_those_with_more_loss() -> None:
    rule = tifl(tiers=2, interval=1)
    state = rule.observe(rule.init(), heard_at(1, 9, 2, 8))  # tier 0: a, c with losses 1, 3; tier 1: b, d with 2, 4
    assert (state.before, state.chances) == ((2.0, 3.0), ())
    state = rule.observe(state._replace(tier=0), told(1, "ac", seconds=[1, 2], loss=[3, 3]))
    assert (state.before, state.chances) == ((3.0, 3.0), (0.5, 0.5))
    state = rule.observe(state, told(2, "ac", seconds=[1, 2], loss=[1, 1]))
    assert state.chances == (0.5, 0.5), "its loss fell: the chances stay"
    assert read(state.known)[ClientId("a")] == (1.0, 3.0, 1.0)


# Fairness


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 25))
def test_least_first_keeps_picks_within_one(clients: int, wanted: int, rounds: int) -> None:
    picks = Counter({ClientId(f"c{i}"): 0 for i in range(clients)})
    for chosen in simulated(fair(), rounds, clients, wanted):
        picks.update(chosen.clients[:wanted])
        assert max(picks.values()) - min(picks.values()) <= 1


def test_who_was_away_comes_first() -> None:
    rule, state = fair(), fair().init()
    for round in range(3):
        state = rule.observe(state, told(round, "ab", asked="ab"))
    assert rule.order(state, Call(3, ids("abc"), 1)).clients[0] == "c"


def test_a_client_that_always_fails_holds_no_place() -> None:
    rule = fair()
    state = rule.observe(rule.init(), told(0, "b", asked="ab"))
    assert rule.order(state, Call(1, ids("abc"), 1)).clients[0] == "c"


def test_the_lottery_is_by_inverse_picks() -> None:
    rule, n = fair("lottery"), 2000
    state = written({ClientId("a"): (3.0,)})  # weights 1/4 and 1
    first = Counter(rule.order(state, Call(round, ids("ab"), 1)).clients[0] for round in range(n))
    assert first[ClientId("a")] / n == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: importance("size"), "must be 'norm' or 'loss'"),
        (lambda: importance(uniform_share=0.0), "must be above 0"),
        (lambda: oort(window=0), "the others 1 or more"),
        (lambda: power_of_choice(), "give it the task"),
        (lambda: power_of_choice(losses="last", d=0), "1 or more"),
        (lambda: tifl(tiers=0), "1 or more"),
        (lambda: tifl(choice="random"), "'adaptive' or 'uniform'"),
        (lambda: fair("most"), "'least' or 'lottery'"),
    ],
)
def test_a_rule_refuses_what_makes_no_sense(make: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make()


def test_norms_and_losses_in_the_order_of_the_paper() -> None:
    # Scores 6, 1, 1 for two places: the first is certain (factor 2/3), the others 1/2 (factor 2 / (3 * 1/2) = 4/3).
    rule = importance("loss", uniform_share=1e-12)
    state = rule.observe(rule.init(), told(0, "abc", loss=[6, 1, 1], update_weight=[1, 1, 1]))
    for round in range(10):
        chosen = rule.order(state, Call(round, ids("bca"), 2))
        assert len(chosen.clients) == 2
        assert chosen.shares is not None
        wanted = {"a": 2 / 3, "b": 4 / 3, "c": 4 / 3}
        assert all(math.isclose(factor, wanted[c], rel_tol=1e-6) for c, factor in chosen.shares.factors.items())
