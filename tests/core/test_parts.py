"""Seeds, staleness, policies, errors, and the fold's judgement of an update."""

from __future__ import annotations

import itertools
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atoll import rng
from atoll.aggregators.mean import mean
from atoll.errors import AtollError, ConfigError, JobError, TreeError, UnknownName, unknown
from atoll.fold import Fold, verdict
from atoll.policy import Policy, buffered, constant, deadline, hinge, polynomial, synchronous
from atoll.store.journal import Ephemeral
from atoll.types import ClientId, Failure, Request, Update


def test_a_place_has_one_seed_and_another_place_another() -> None:
    places = [(7,), (8,), (7, "a"), (7, "a", 1), (7, "a", 2), (7, "a1"), (7, "a", "1"), (7, ("a", 1)), (7, "b", 1)]
    seeds = [rng.seed(*place) for place in places]
    assert len(set(seeds)) == len(places)
    assert all(0 <= s < 2**63 for s in seeds)
    assert rng.seed(7, "a", 1) == seeds[3]


def test_seeds_are_the_same_on_every_machine() -> None:
    # blake2b-64 of "(0, 'cohort', 0)", shifted right by one: a change of this number changes every run ever made
    import hashlib

    want = int.from_bytes(hashlib.blake2b(b"(0, 'cohort', 0)", digest_size=8).digest(), "big") >> 1
    assert rng.seed(0, "cohort", 0) == want


@given(n=st.integers(0, 50), s=st.integers(0, 2**63))
def test_a_permutation_is_one(n: int, s: int) -> None:
    assert sorted(rng.permutation(n, s, "x").tolist()) == list(range(n))


def test_the_global_generator_is_lent_and_given_back() -> None:
    torch.manual_seed(1)
    want = [torch.rand(1).item() for _ in range(2)]
    torch.manual_seed(1)
    first = torch.rand(1).item()
    with pytest.raises(ZeroDivisionError), rng.seeded(5):
        torch.rand(9).div_(1 // 0)
    assert [first, torch.rand(1).item()] == want


def test_staleness() -> None:
    assert [constant(a) for a in (0, 9)] == [1, 1]
    assert [polynomial(0.5)(a) for a in (0, 3, 8)] == pytest.approx([1, 0.5, 1 / 3])
    assert [polynomial(0)(a) for a in (0, 3)] == [1, 1]
    assert [hinge(10, 4)(a) for a in (0, 4, 5, 6)] == pytest.approx([1, 1, 1 / 11, 1 / 21])


def test_the_named_policies() -> None:
    assert synchronous(5) == Policy(5, 5)
    assert not synchronous().continues
    assert buffered(3).continues
    assert deadline(3, 1.0).continues
    assert not deadline(3, 1.0, late="drop").continues
    with pytest.raises(ConfigError, match="min_updates = 6 is above close_after = 5"):
        synchronous(5, min_updates=6)


def update(client: str, value: float, weight: float = 1.0, round: int = 0, **metrics: float) -> Update:
    return Update(round, ClientId(client), "train", {"w": torch.tensor([value])}, weight, metrics)


def folded(order: list[Update | Failure], in_order: bool, now: int = 0, policy: Policy | None = None) -> list[float]:
    request = Request("train", [ClientId(c) for c in "abc"], lambda _: {}, mean("uniform"))
    fold = Fold(request, policy or Policy(), now, in_order)
    fold.order.extend(ClientId(c) for c in "abc")
    for answer in order:
        fold.hear(answer, Ephemeral().hold)
    reduced = fold.finish()
    return [float(reduced.tree["w"]), *(float(ord(c)) for c in reduced.clients), reduced.metrics.get("loss", -1.0)]


def test_a_fold_in_order_does_not_know_the_order() -> None:
    answers = [update("a", 1e8, 1.0, loss=1.0), update("b", 3.3, 2.0, loss=4.0), update("c", -1e8, 1.0, loss=1e-8)]
    results = {tuple(folded(list(order), in_order=True)) for order in itertools.permutations(answers)}
    assert len(results) == 1
    assert len({tuple(folded(list(order), in_order=False)) for order in itertools.permutations(answers)}) > 1


def test_a_fold_passes_over_who_failed_or_was_not_heard() -> None:
    lost = Failure(0, ClientId("a"), "train", "lost", "gone")
    assert folded([update("c", 4.0), lost], in_order=True)[:2] == [4.0, float(ord("c"))]


def test_metrics_are_weighted_means() -> None:
    # (1 1 + 3 5) / 4; a client that does not report a metric does not count for it
    assert folded([update("a", 0, 1.0, loss=1.0), update("b", 0, 3.0, loss=5.0), update("c", 0, 9.0)], True)[-1] == 4.0


def test_a_fold_discounts_by_age() -> None:
    stale = Policy(staleness=polynomial(0.5))
    assert folded([update("a", 6.0, round=1)], in_order=False, now=4, policy=stale)[0] == 3.0


def test_the_verdict_on_an_update() -> None:
    good = update("a", 1.0)
    assert verdict(good, None) is good
    assert verdict(good, {"w": torch.zeros(1, device="meta")}) is good
    for bad, kind in (
        (update("a", math.inf), "not_finite"),
        (update("a", 1.0, loss=math.nan), "not_finite"),
        (update("a", 1.0, weight=-1.0), "invalid"),
        (update("a", 1.0, weight=math.nan), "invalid"),
        (good._replace(tree={"w": torch.zeros(2)}), "invalid"),
    ):
        found = verdict(bad, {"w": torch.zeros(1)})
        assert isinstance(found, Failure)
        assert (found.kind, found.client, found.round, found.work) == (kind, "a", 0, "train")


def test_errors_form_one_tree_and_offer_the_nearest_name() -> None:
    assert issubclass(ConfigError, AtollError)
    assert issubclass(TreeError, ValueError)
    error = unknown("algorithm", "scafold", ["fedavg", "scaffold"])
    assert isinstance(error, UnknownName)
    assert "did you mean 'scaffold'?" in str(error)
    assert "did you mean" not in str(unknown("algorithm", "zzz", ["fedavg"]))


def test_errors_cross_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(JobError(["line 1: no", "line 2: nor this"])))
    assert error.problems == ("line 1: no", "line 2: nor this")
    assert str(pickle.loads(pickle.dumps(ConfigError("a = 3")))) == "a = 3"
