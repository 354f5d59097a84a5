"""Every cause, on values made by hand: the sentence names site, client, round, cause and what to do, worst first."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from atoll.deploy.operations.status import ClientState, Live, Rules, SiteState, Status, Trouble, of_site
from atoll.deploy.operations.why import clock, doing, headline, reasons

NOW = 1_800_000_000.0
BEGAN, ASKED = NOW - 600.0, NOW - 60.0
NORTH, SOUTH = SiteState("north", True, NOW - 1, "accepted"), SiteState("south", True, NOW - 2, "accepted")
IDLE = ClientState("a", "north")
BUSY = ClientState("b", "south", "training", 17, 40, NOW - 30, NOW - 1, 2, "train")


def status(
    *clients: ClientState, sites: tuple[SiteState, ...] = (NORTH, SOUTH), state: str = "running", **more: object
) -> Status:
    live = Live(NOW - 1, BEGAN, "training", False, 2, ASKED, ASKED, "train", Rules(), sites, clients or (IDLE, BUSY))
    return Status("job-1", "job", state, 10, 2, NOW, live._replace(**more))  # type: ignore[arg-type]


def at(moment: float) -> str:
    return clock(moment, NOW)


def asked(
    doing: str, done: int = 0, total: int = 0, since: float = NOW - 30, moved: float = NOW - 1, **more: object
) -> ClientState:
    return ClientState("a", "north", doing, done, total, since, moved, 2, "train")._replace(**more)  # type: ignore[arg-type]


def only(found: Status) -> str:
    (told,) = reasons(found)
    return told


def test_a_training_says_its_step() -> None:
    assert only(status()) == "b at south, round 3 (train): training, step 17 of 40, for 30 s."
    assert headline(status()) == "job-1: running, round 3 of 10, 'train': 0 of 1 client answered, asked 1 min ago"


def test_a_transfer_says_how_far_it_is_in_either_direction() -> None:
    for way, what in (("fetching", "fetching the model"), ("pushing", "sending its answer")):
        told = only(status(asked(way, 4_000_000, 10_000_000)))
        assert told == f"a at north, round 3 (train): {what}, 40 % (4 MB of 10 MB), for 30 s."


def test_who_is_least_far_is_said_first() -> None:
    found = reasons(status(asked("pushing", 5, 10), BUSY, asked("fetching", 1, 10, client="c")))
    assert [each.partition(" ")[0] for each in found] == ["c", "b", "a"]


def test_what_does_not_move_is_worse_than_what_does() -> None:
    found = reasons(status(BUSY, asked("fetching", 1, 10, moved=NOW - 25), asked("training", 3, 9, moved=NOW - 125, client="c")))
    assert "Nothing has come for 25 s: the line is slow or broken; it goes on where it stopped" in found[0]
    assert "No step for 2 min 5 s: look at the machine of north" in found[1]
    assert f"If that lasts it is lost by {at(NOW - 125 + 2 * 3600)}" in found[1]
    assert found[2].startswith("b at south")


def test_a_client_waits_for_its_turn_or_for_a_disk() -> None:
    first, second = asked("training", 1, 9), asked("waiting", client="c")
    told, _ = reasons(status(first, second))
    assert told == "c at north, round 3 (train): waiting for its turn; north is at work for a."
    told = reasons(status(BUSY, asked("waiting", text="the disk has no room")))[0]
    assert "a at north, round 3 (train): waiting: the disk has no room. Mend that at north" in told


def test_a_site_that_went_is_named_with_since_when_and_what_becomes_of_its_clients() -> None:
    gone = NORTH._replace(online=False, since=NOW - 40)
    told = reasons(status(asked("offline"), asked("offline", client="c"), BUSY, sites=(gone, SOUTH)))[0]
    assert told.startswith(f"north: offline since {at(NOW - 40)} (40 s). Round 3 waits for its a, c (train); at about ")
    assert f"at about {at(NOW - 40 + 300)} that counts as lost, and the round goes on by its policy." in told
    assert "Start it there with `atoll join`" in told


def test_a_site_that_went_before_it_was_asked_is_waited_for_from_then_on() -> None:
    gone = NORTH._replace(online=False, since=NOW - 400)
    assert f"at about {at(ASKED + 300)} that counts as lost" in reasons(status(asked("offline"), sites=(gone,)))[0]


def test_a_site_that_never_called() -> None:
    never = SiteState("north", False)
    told = only(status(IDLE, ClientState("b", "south"), sites=(never, SOUTH), asked=None))
    assert told.startswith(f"north: has not called since the coordinator began at {at(BEGAN)} (10 min ago).")
    assert f"Round 3 waits for it until {at(ASKED + 300)}, then begins with those that are there." in told


def test_when_a_round_begins_without_a_site() -> None:
    clients, sites = (IDLE, ClientState("b", "south")), (SiteState("north", False), SOUTH)

    def told(rules: Rules, first: int) -> str:
        return only(status(*clients, sites=sites, asked=None, rules=rules, first=first))

    assert "Round 3 begins when 2 sites are there that take part, and 1 are." in told(Rules(start_with=2), first=2)
    assert f"waits for it until {at(ASKED + 300)}, then" in told(Rules(timeout_s=90.0), first=2)
    assert f"waits for it until {at(ASKED + 90)}, or with 4 clients, then" in told(Rules(timeout_s=90.0, enough=4), first=1)


def test_without_any_site_no_round_begins() -> None:
    never = tuple(SiteState(name, False) for name in ("north", "south"))
    found = reasons(status(IDLE, ClientState("b", "south"), sites=never, asked=None))
    assert [each.partition(":")[0] for each in found] == ["north", "south"]
    assert all("Round 3 can't begin, since no site is there that takes part." in each for each in found)


def test_a_site_that_nobody_waits_for_is_said_last() -> None:
    gone = NORTH._replace(online=False, since=NOW - 4000)
    busy, absent = reasons(status(IDLE, BUSY, sites=(gone, SOUTH)))
    assert busy.startswith("b at south")
    assert "Nobody waits for it; its a is asked again when it is there." in absent


def test_refusal_consent_and_no_answer_are_three_things() -> None:
    text = "[jobs] names: 'job' is not allowed"
    refuses = NORTH._replace(consent="refused", reason=text)
    told = reasons(status(IDLE, BUSY, sites=(refuses, SOUTH)))[0]
    assert told.startswith(f"north: refuses the job: {text}. Nobody waits for it; rounds go on without its a.")
    assert told.endswith("Whoever runs the site can change its policy or its data; or change the job.")
    told = only(status(IDLE, sites=(refuses,), asked=None))
    assert told.startswith(f"north: refuses the job: {text}. Round 3 can't begin, since no site is there that takes part.")
    waits = NORTH._replace(consent="waiting", reason="the site's consent is awaited: `atoll site approve 4f0c` there")
    told = reasons(status(IDLE, sites=(waits, SOUTH), asked=None))[0]
    assert told.startswith(
        "north: has not agreed yet: the site's consent is awaited: `atoll site approve 4f0c` there. Round 3 waits"
    )
    told = reasons(status(asked("idle"), BUSY, sites=(waits, SOUTH)))[0]
    assert "Round 3 waits for its a (train); after 5 min without it that counts as lost" in told
    told = reasons(status(IDLE, sites=(NORTH._replace(consent=""), SOUTH), asked=None))[0]
    assert told.startswith("north: connected, and has not answered the invitation: it reads its data and builds its part")


def test_failures_of_the_round_are_told_with_what_the_policy_makes_of_them() -> None:
    lost = (Trouble(2, "a", "train", "error: no such column 'age'"),)
    failed, busy = reasons(status(IDLE, BUSY, lost=lost))
    assert failed == "a at north failed in round 3 (train): error: no such column 'age'. The round goes on without that answer."
    assert busy.startswith("b at south")
    assert "The policy stops the job." in reasons(status(lost=lost, rules=Rules(on_failure="stop")))[0]
    assert "'train': 0 of 2 clients answered, 1 failed, asked" in headline(status(IDLE, BUSY, lost=lost))
    assert _first(status(IDLE, BUSY, lost=lost)) == "failed: error: no such column 'age'"


def test_a_deadline_and_over_selection() -> None:
    found = status(rules=Rules(timeout_s=100.0, close_after=1), clients=(asked("training", 1, 2), BUSY))
    assert f"Round 3 closes at its deadline, {at(ASKED + 100)} (in 40 s), with the answers that it has." in reasons(found)
    assert "0 of 2 clients answered, closes with the first 1" in headline(found)


def test_who_has_answered_is_counted() -> None:
    found = status(IDLE._replace(heard=True), BUSY)
    assert "'train': 1 of 2 clients answered" in headline(found)
    assert _first(found) == "has answered"


def _first(found: Status) -> str:
    assert found.live is not None
    return doing(found.live.clients[0], found.live.sites[0], found.live, NOW)


def test_the_coordinator_waits_for_nobody() -> None:
    told = only(status(IDLE, ClientState("b", "south"), own=True, asked=None))
    assert told == ("No client is asked now: in round 3 the coordinator folds answers, judges the model or writes a checkpoint.")
    assert only(status(sites=(), clients=(), doing="reading the data", own=True)) == (
        "No client is asked now: the coordinator is reading the data."
    )


def test_a_coordinator_that_is_silent_is_said_first() -> None:
    found = reasons(status(at=NOW - 40))
    assert found[0].startswith("The coordinator has not been heard for 40 s: its process lives, and hangs")
    assert found[1].startswith("b at south")
    assert not any("has not been heard" in each for each in reasons(status(at=NOW - 20)))


def test_a_coordinator_that_was_killed() -> None:
    told, failed = reasons(
        status(state="interrupted", at=NOW - 40)._replace(failures=(Trouble(1, "b", "train", "lost: its site was away."),))
    )
    assert told == (
        f"The coordinator of job-1 is stopped or was killed: it was last heard at {at(NOW - 40)} (40 s ago), in round 3 of 10. "
        "Serve the same job again: it goes on after round 2."
    )
    assert failed == "b at south failed in round 2 (train): lost: its site was away."


def test_runs_that_have_ended_or_were_never_served() -> None:
    ended = datetime.fromtimestamp(NOW - 5, UTC).isoformat()
    done = Status("job-1", "job", "finished", 10, 10, NOW, finished=ended)
    assert only(done) == f"job-1 is finished at {at(NOW - 5)}: 10 rounds of 10 are done, and nobody is waited for."
    failed = done._replace(state="failed", rounds_done=3, error="round 4, 'train': too few")
    assert only(failed).endswith("round 4, 'train': too few. Go on with `atoll resume job-1`: it goes on after round 3.")
    assert "Serve the same job again" in only(status(state="failed"))
    assert only(done._replace(state="created", rounds_done=0)).endswith(
        "was made and never begun. Go on with `atoll resume job-1`."
    )
    assert "no coordinator writes of it here" in only(done._replace(state="running"))


def test_a_site_is_told_of_itself_alone() -> None:
    lost = (Trouble(2, "a", "train", "x"), Trouble(2, "b", "train", "y"))
    whole = status(IDLE, BUSY, lost=lost)._replace(error="b of south", failures=lost)
    found = of_site(whole, "north")
    told = repr(found)
    assert "south" not in told
    assert "'b'" not in told
    assert "Nothing is asked of this site now" in reasons(found._replace(live=found.live._replace(lost=())))[0]  # type: ignore[union-attr]


def test_a_site_that_is_away_is_not_told_whether_others_are_there() -> None:
    away = SiteState("north", False)
    told = only(of_site(status(IDLE, ClientState("b", "south"), sites=(away, SOUTH), asked=None), "north"))
    alone = only(of_site(status(IDLE, sites=(away,), asked=None), "north"))
    assert "Nothing is asked of it meanwhile." in told
    assert told == alone


def test_a_client_of_its_sites_name_is_named_once() -> None:
    assert only(status(BUSY._replace(client="south"))).startswith("south, round 3 (train): training")


def test_many_of_one_kind_are_counted() -> None:
    clients = tuple(asked("training", i, 99, client=f"c{i}") for i in range(30))
    found = reasons(status(*clients))
    assert len(found) == 9
    assert found[-1] == "And 22 more like these; `atoll status` lists them all."


@pytest.mark.parametrize("state", ["created", "running", "interrupted", "failed", "finished"])
def test_there_is_always_a_reason(state: str) -> None:
    for live in (None, status().live):
        assert reasons(Status("job-1", "job", state, 10, 0, NOW, live))
