"""Every policy between real ends: who is slow, late, lost, leaving or new, and what the round makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atoll.deploy.coordinator import opened, sweep
from atoll.deploy.rules import willing
from atoll.deploy.rules.approvals import Consents
from atoll.engines.remote import Remote
from atoll.errors import ConfigError, RoundError
from atoll.job.build import build
from atoll.job.check import check
from atoll.job.text import parse
from atoll.remote.spool import spelled
from atoll.remote.values import Place
from atoll.store.runs import Store
from atoll.types import ClientId, Failure
from tests.deploy.loopback import ALL, SITES, Loopback, job, loopback
from tests.remote.ends import hub_at, until


class Clock:
    """Of the engine: it stands still but for what a test adds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(Remote, "now", lambda _: self.now_s)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_over_selection_closes_with_the_quick_ones_and_withdraws_the_rest(tmp_path: Path) -> None:
    """The slow one stops at its next step, so that its site is free for the next round."""
    text = job('{ name = "over_selecting", clients_per_round = 2, factor = 1.5 }', algorithm="scaffold")
    with loopback(tmp_path) as here:
        here.gates.hold((0, "c"), (1, "a"))
        here.come("a", "b", "c")
        here.serve(text, start_with=3)
        here.until_round(0)
        assert here.clients(0) == [SITES["a"], SITES["b"]]
        (withdrawn,) = here.heard("cancelled", 0)
        assert withdrawn.client == SITES["c"]
        assert withdrawn.metrics["bytes_down"] > 64 * 8 * 4, "the model went to it for nothing, and that is told"
        place = Place(0, ClientId(SITES["c"]), "train")
        until(lambda: here.gates.at(0, "c") and not here.link("c").wanted(here.run, place), "the site did not hear of it")
        here.gates.free((0, "c"))
        assert here.ended() is None
        assert here.clients(1) == [SITES["b"], SITES["c"]]
        assert here.gates.at(0, "c") == 1, "it went on with what nobody waits for"
        here.gates.free()
        until(lambda: here.sites["a"][0].ended, "the slow one of the last round is not free")
    assert not list(tmp_path.glob("[abc]/memory/**/*.pending")), "memory of what was withdrawn is kept"


@pytest.mark.parametrize(
    "policy",
    [
        '{ name = "deadline", clients_per_round = 3, timeout_s = 100.0 }',
        '{ name = "hybrid", clients_in_flight = 3, buffer = 3, timeout_s = 100.0 }',
    ],
    ids=["deadline", "hybrid"],
)
def test_at_the_deadline_a_round_closes_and_a_late_answer_counts_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    clock = Clock(monkeypatch)
    with loopback(tmp_path) as here:
        here.gates.hold((0, "c"))
        here.come("a", "b", "c")
        here.serve(job(policy), start_with=3)
        until(lambda: len(here.heard("update", 0)) == 2, "the quick ones did not answer")
        clock.now_s += 101.0
        here.until_round(0)
        here.gates.free()
        assert here.ended() is None
        assert here.clients(0) == [SITES["a"], SITES["b"]]
        assert {str(each.client): each.metrics["age"] for each in here.heard("update", 1)} == {
            SITES["a"]: 0.0,
            SITES["b"]: 0.0,
            SITES["c"]: 1.0,
        }


def test_a_late_answer_that_is_dropped_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with loopback(tmp_path) as here:
        here.gates.hold((0, "c"))
        here.come("a", "b", "c")
        here.serve(job('{ name = "deadline", clients_per_round = 3, timeout_s = 100.0, late = "drop" }'), start_with=3)
        until(lambda: len(here.heard("update", 0)) == 2 and here.gates.at(0, "c"), "the quick ones did not answer")
        clock.now_s += 101.0
        here.until_round(0)
        until(lambda: not here.link("c").wanted(here.run, Place(0, ClientId(SITES["c"]), "train")), "it did not hear of it")
        here.gates.free()
        assert here.ended() is None
        assert here.gates.at(0, "c") == 1
        assert here.clients(1) == sorted(SITES.values())
        assert {each.metrics["age"] for each in here.heard("update", 1)} == {0.0}


def asynchronous(folder: Path, stopped: bool) -> dict[str, torch.Tensor]:
    """Three rounds of two updates; c works at the first model for all of them, and the coordinator may stop in the last."""
    with loopback(folder) as here:
        text = job('{ name = "buffered", clients_in_flight = 3, buffer = 2 }', rounds=3)
        here.gates.hold((0, "c"), (0, "b"), (1, "b"), (2, "a"), (2, "b"))
        here.come("a", "b", "c")
        here.serve(text, start_with=3)
        for round in (0, 1):  # one order of arrival, since the sum is in that order
            until(lambda round=round: here.heard("update", round), "a did not answer")  # type: ignore[misc]
            here.gates.free((round, "b"))
            here.until_round(round)
        until(lambda: here.gates.at(2, "a") and here.gates.at(2, "b"), "the last round has not begun")
        if stopped:
            here.stop()
            here.serve(text, start_with=3)
            until(lambda: here.there("a", "b", "c"), "the sites did not come again")
        here.gates.free((0, "c"))
        until(lambda: here.heard("update", 2), "c did not answer")
        (stale,) = here.heard("update", 2)
        assert (stale.client, stale.metrics["age"]) == (SITES["c"], 2.0)
        here.gates.free((2, "b"))
        assert here.ended() is None
        assert here.clients(2) == [SITES["b"], SITES["c"]]
        return here.params


def test_an_asynchronous_run_outlives_its_coordinator_with_work_in_flight(tmp_path: Path) -> None:
    assert same(asynchronous(tmp_path / "stopped", True), asynchronous(tmp_path / "whole", False))


def denied(here: Loopback, site: str, why: str = "") -> None:
    Consents(here.folder / site).decide("job", "denied", "anna", why)


def test_who_withdraws_consent_is_out_at_once_and_in_again_with_the_next_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a patience of an hour nobody waits for who has said no."""
    monkeypatch.setattr(willing, "LOOK_S", 0.0)
    with loopback(tmp_path) as here:
        here.gates.hold((0, "c"), (1, "a"))
        here.come("a", "b", "c")
        here.serve(job(ALL, rounds=3), patience_s=3600.0)
        until(lambda: here.gates.at(0, "c"), "nothing was asked")
        denied(here, "c", "no ethics vote yet")
        here.gates.free((0, "c"))
        here.until_round(0)
        (failure,) = here.heard("failure", 0)
        assert failure.text == "refused: its site takes no part: the site has left the job: no ethics vote yet"
        assert here.gates.at(0, "c") == 1
        until(lambda: here.gates.at(1, "a"), "the next round does not begin")
        Consents(here.folder / "c").decide("job", "approved", "anna")
        until(lambda: here.there("c"), "it is not back")
        here.gates.free()
        assert here.ended() is None
        assert [here.clients(round) for round in (0, 1, 2)] == [
            [SITES["a"], SITES["b"]],
            [SITES["a"], SITES["b"]],
            sorted(SITES.values()),
        ]


def test_a_job_starts_with_so_many_sites_and_a_later_one_is_in_the_next_round(tmp_path: Path) -> None:
    with loopback(tmp_path) as here:
        here.gates.hold((0, "a"))
        here.come("a", "b")
        here.serve(job(ALL), patience_s=3600.0, start_with=2)
        until(lambda: here.gates.at(0, "a"), "the job waits for all")
        here.come("c")
        until(lambda: here.there("c"), "it takes no part")
        here.gates.free()
        assert here.ended() is None
        assert [here.clients(round) for round in (0, 1)] == [[SITES["a"], SITES["b"]], sorted(SITES.values())]
        here.serve(job(ALL), start_with=4)
        assert "4 sites, and has 3" in str(here.ended())


OWN = """
[data]
name = "digits"
clients = 3
partition = "iid"
seed = 3
"""


def test_a_run_goes_on_with_a_site_that_its_file_did_not_name_before(tmp_path: Path) -> None:
    with loopback(tmp_path) as here:
        here.come("a", "b", own=OWN)
        here.gates.hold((1, "a"))
        here.serve(job(ALL, rounds=3, sites="ab"), data="none")
        until(lambda: here.gates.at(1, "a"), "round 1 has not begun")
        before = here.run
        here.stop()
        here.gates.free()
        here.come("c", own=OWN)
        here.serve(job(ALL, rounds=3), data="none")
        assert here.ended() is None
        assert here.run == before
        assert here.clients(2) == sorted(SITES.values())
    with Store(tmp_path / "runs") as store:
        assert sorted(store.record(before).config["sites"]) == ["a", "b", "c"]


ONE = OWN.replace("clients = 3", "clients = 1")


def test_an_open_job_takes_in_between_two_rounds_whoever_comes(tmp_path: Path) -> None:
    """The run begins again from its checkpoint with the newcomer; the coordinator's restart knows all who were there."""
    text = job(ALL, rounds=4, sites="").replace("[sites]", "").replace("atoll = 1", 'atoll = 1\nsites = "open"')
    with loopback(tmp_path) as here:
        here.gates.hold((0, "a"), (3, "a"))
        here.come("a", "b", own=ONE)
        here.serve(text, data="none", start_with=2)
        until(lambda: here.gates.at(0, "a"), "it does not begin")
        here.come("c", own=ONE)
        until(lambda: ClientId("c") in here.hub.online(here.run), "it was not invited")
        here.gates.free((0, "a"))
        until(lambda: here.gates.at(3, "a"), "the last round has not begun")
        assert [here.clients(round) for round in (0, 1, 2)] == [["a", "b"], ["a", "b", "c"], ["a", "b", "c"]]
        here.stop()
        here.gates.free()
        here.serve(text, data="none", start_with=2)
        assert here.ended() is None
        assert here.clients(3) == ["a", "b", "c"]
        here.serve(text.replace('"fedavg"', '"scaffold"'), data="none")
        assert "counts all clients" in str(here.ended())


@pytest.mark.parametrize(
    ("algorithm", "sites", "says"),
    [
        ("scaffold", "abc", "scaffold counts all clients, and .sites. had 2 clients when the run began, and now has 3"),
        ("fedavg", "a", "has begun with 'client-1' at 'b'"),
    ],
)
def test_a_run_that_cannot_go_on_with_other_sites_says_so(tmp_path: Path, algorithm: str, sites: str, says: str) -> None:
    def begun(sites: str) -> None:
        document = parse(job(ALL, algorithm=algorithm, sites=sites))
        opened(store, "job", document.values, check(document)).close()

    with Store(tmp_path) as store:
        begun("ab")
        with pytest.raises(ConfigError, match=says):
            begun(sites)
        assert len(store.list()) == 1


def test_a_job_that_fails_tells_its_sites_and_goes_on_when_served_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was accepted before is not asked again, or control variates would have moved twice."""
    monkeypatch.setattr(willing, "LOOK_S", 0.0)
    text = job('{ name = "synchronous", min_updates = 3 }', algorithm="scaffold")
    with loopback(tmp_path) as here:
        here.gates.hold((1, "c"))
        here.come("a", "b", "c")
        here.serve(text)
        until(lambda: here.gates.at(1, "c") and len(here.heard("update", 1)) == 2, "round 1 has not begun")
        denied(here, "c")
        here.gates.free()
        error = here.ended()
        assert isinstance(error, RoundError)
        assert "2 of 3 clients answered" in str(error)
        for name in "abc":
            until(lambda name=name: here.sites[name][0].failed, f"{name} was not told")  # type: ignore[misc]
            assert here.sites[name][0].failed == {here.run: "a round could not be closed"}
        Consents(here.folder / "c").decide("job", "approved", "anna")
        here.serve(text)
        assert here.ended() is None
        assert here.clients(1, "update") == sorted(SITES.values())
        assert not here.sites["a"][0].failed
        simulated = dict(build(check(parse(text))).run(2).params)
        assert same(here.params, simulated)


def test_who_stood_in_is_heard_when_those_are_asked_again_who_had_failed(tmp_path: Path) -> None:
    """Two are asked, one fails, the third takes its place, and the round fails all the same: all three may be asked anew."""
    text = job('{ name = "synchronous", clients_per_round = 2, min_updates = 2, on_failure = "drop" }', rounds=1)
    with loopback(tmp_path) as here:
        here.come("a", "b", "c")
        here.gates.hold(*((0, site) for site in "abc"))
        here.serve(text)
        until(lambda: len(here.gates.steps) == 2, "two are asked")
        for _, site in sorted(here.gates.steps):
            client = SITES[site]
            here.link(site).answer(here.run, Failure(0, ClientId(client), "train", "error", "out of memory"))
            until(lambda client=client: client in here.clients(0, "failure"), "its failure was not heard")  # type: ignore[misc]
        until(lambda: len(here.gates.steps) == 3, "nobody takes the place of who failed")
        here.gates.free()
        assert isinstance(here.ended(), RoundError)
        assert len(here.clients(0)) == 1
        here.serve(text)
        assert here.ended() is None
        assert len(here.clients(0)) == 2


def test_what_ended_while_a_coordinator_was_away_is_swept(tmp_path: Path) -> None:
    with Store(tmp_path / "runs") as store, hub_at(tmp_path / "hub") as hub:
        with store.create("going", {}, 0, 1) as going:
            going.finish("interrupted")
        with store.create("over", {}, 0, 1) as over:
            over.finish("finished")
        for name in (going.id, over.id, "deleted"):
            (tmp_path / "hub" / "jobs" / spelled(name) / "inbox").mkdir(parents=True)
        sweep(hub, store)
        assert [left.name for left in (tmp_path / "hub" / "jobs").iterdir()] == [spelled(going.id)]


def test_a_stopped_coordinator_is_no_end_for_its_sites(tmp_path: Path) -> None:
    with loopback(tmp_path) as here:
        here.gates.hold((0, "a"))
        here.come("a", "b", "c")
        here.serve(job(ALL))
        until(lambda: here.gates.at(0, "a"), "nothing was asked")
        here.stop()
        here.gates.free()
        here.serve(job(ALL))
        assert here.ended() is None
        assert not any(site.failed for site, *_ in here.sites.values())
        until(lambda: all(here.run in site.ended for site, *_ in here.sites.values()), "the end was not told")
