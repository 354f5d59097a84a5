"""Every answer is settled once, whichever end dies, and whenever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atoll.errors import RemoteError
from atoll.remote.spool import spelled
from atoll.remote.values import Acknowledged, Cancelled, Closed, Consent, Invited, Offered, Place, Refused
from atoll.types import Update
from tests.remote.ends import (
    JOB,
    NORTH,
    SOON_S,
    SOUTH,
    Proxy,
    answer_of,
    ask_for,
    event,
    hub_at,
    link_to,
    offered,
    reply,
    settled,
    tree_of,
    until,
)

TREE = tree_of(10)
PLACE = Place(0, NORTH, "train")


def test_an_acknowledgement_that_a_site_did_not_hear_is_said_by_the_next_hub(tmp_path: Path) -> None:
    with hub_at(tmp_path / "hub") as hub:
        hub.open(JOB, {NORTH: "north"})
        hub.offer(JOB, [ask_for(TREE)])
        with link_to(hub.address, tmp_path / "site") as link:
            link.answer(JOB, reply(offered(link)))
            answer = answer_of(hub)
        assert isinstance(answer, Update)
        hub.acknowledge(JOB, answer)  # the site is gone
    with hub_at(tmp_path / "hub") as hub:
        hub.open(JOB, {NORTH: "north"})
        with link_to(hub.address, tmp_path / "site") as link:
            assert event(link, Acknowledged) == Acknowledged(JOB, PLACE)
            settled(link)
            until(lambda: not hub._floor.desks[JOB].settled, "the site's confirmation was not heard")
    with hub_at(tmp_path / "hub") as hub:
        hub.open(JOB, {NORTH: "north"})
        assert not hub._floor.desks[JOB].settled


def test_a_kill_between_the_journal_and_the_acknowledgement_is_made_good(tmp_path: Path) -> None:
    with hub_at(tmp_path / "hub") as hub:
        hub.open(JOB, {NORTH: "north"})
        hub.offer(JOB, [ask_for(TREE)])
        with link_to(hub.address, tmp_path / "site") as link:
            link.answer(JOB, reply(offered(link)))
            answer = answer_of(hub)  # journalled here, and then the process dies
    for order in ("hello first", "open first"):
        with hub_at(tmp_path / order) as hub:
            if order == "open first":
                hub.open(JOB, {NORTH: "north"}, accepted=[answer])
            with link_to(hub.address, tmp_path / "site") as link:
                until(lambda: link.online, link.trouble)
                if order == "hello first":
                    hub.open(JOB, {NORTH: "north"}, accepted=[answer])
                assert event(link, Acknowledged) == Acknowledged(JOB, PLACE)  # and not dealt with, so that it comes again
                assert link.outbox() == {(JOB, PLACE)}


def test_a_site_that_dies_before_it_has_committed_is_told_again(tmp_path: Path) -> None:
    with hub_at(tmp_path / "hub") as hub:
        hub.open(JOB, {NORTH: "north"})
        hub.offer(JOB, [ask_for(TREE)])
        with link_to(hub.address, tmp_path / "site") as link:
            link.answer(JOB, reply(offered(link)))
            answer = answer_of(hub)
            assert isinstance(answer, Update)
            hub.acknowledge(JOB, answer)
            assert event(link, Acknowledged) == Acknowledged(JOB, PLACE)  # and it dies in the middle of it
        with link_to(hub.address, tmp_path / "site") as link:
            assert Acknowledged(JOB, PLACE) in settled(link)


def test_what_is_refused_is_dropped_at_the_site_at_work_or_answered(tmp_path: Path) -> None:
    with hub_at(tmp_path / "hub") as hub, link_to(hub.address, tmp_path / "site") as link:
        hub.open(JOB, {NORTH: "north", SOUTH: "north"})
        hub.offer(JOB, [ask_for(TREE), ask_for(TREE, SOUTH)])
        got = {NORTH: offered(link)}
        second = offered(link)
        got[second.client] = second
        link.answer(JOB, reply(got[NORTH]))
        hub.refuse(JOB, answer_of(hub))
        assert event(link, Refused) == Refused(JOB, PLACE)
        hub.refuse(JOB, reply(ask_for(TREE, SOUTH)))  # its lease has run out
        assert event(link, Refused).place.client in (NORTH, SOUTH)
        settled(link)
        link.answer(JOB, reply(got[SOUTH]))  # nobody wants it any more
        assert not link.outbox()
        assert not list(hub.answers(JOB, 0.0))


def test_cancelled_work_is_withdrawn_on_the_way_at_work_and_answered(tmp_path: Path) -> None:
    with hub_at(tmp_path / "hub") as hub, link_to(hub.address, tmp_path / "site") as link:
        hub.open(JOB, {NORTH: "north"})
        hub.offer(JOB, [ask_for(TREE)])
        got = offered(link)
        link.answer(JOB, reply(got))
        until(lambda: hub.progress(JOB)[NORTH].doing == "answered", "no answer came")
        hub.cancel(JOB, 0, "train")
        assert event(link, Cancelled) == Cancelled(JOB, 0, "train")
        assert not link.outbox()
        assert not list(hub.answers(JOB, 0.0))
        assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file() and path.suffix != ".jsonl"]


def test_a_cancellation_reaches_a_site_that_was_away(tmp_path: Path) -> None:
    with hub_at(tmp_path / "hub") as hub:
        hub.open(JOB, {NORTH: "north"})
        hub.offer(JOB, [ask_for(TREE)])
        line = Proxy(hub.address)
        with link_to(line.address, tmp_path / "site") as link:
            offered(link)
            line.close()
            until(lambda: hub.progress(JOB)[NORTH].doing == "offline", "the hub did not see it go")
            hub.cancel(JOB, 0, "train")
        with link_to(hub.address, tmp_path / "site") as link:
            assert event(link, Cancelled) == Cancelled(JOB, 0, "train")


def test_a_newer_question_to_the_same_client_withdraws_the_older_one(tmp_path: Path) -> None:
    """The next hub does not know of round 0, and the site's answer to it waits for nobody."""
    with hub_at(tmp_path / "hub") as hub:
        hub.open(JOB, {NORTH: "north"})
        hub.offer(JOB, [ask_for(TREE)])
        with link_to(hub.address, tmp_path / "site") as link:
            link.answer(JOB, reply(offered(link)))
            answer_of(hub)
    with hub_at(tmp_path / "other") as hub, link_to(hub.address, tmp_path / "site") as link:
        hub.open(JOB, {NORTH: "north"})
        hub.offer(JOB, [ask_for(TREE, round=1)])
        seen = []
        for each in link.events(SOON_S):
            seen.append(each)
            if isinstance(each, Invited):
                link.consent(JOB, True)
            if isinstance(each, Offered):
                break
        assert [type(each) for each in seen if not isinstance(each, Invited)] == [Refused, Offered]
        assert not link.outbox()


def test_a_resumed_job_over_the_same_hub_is_given_its_answers_again(tmp_path: Path) -> None:
    with hub_at(tmp_path / "hub") as hub, link_to(hub.address, tmp_path / "site") as link:
        hub.open(JOB, {NORTH: "north"})
        hub.offer(JOB, [ask_for(TREE)])
        link.answer(JOB, reply(offered(link)))
        answer_of(hub)  # and the run stops before it has journalled it
        hub.offer(JOB, [ask_for(TREE)])
        assert answer_of(hub).client == NORTH


def test_a_job_that_ends_leaves_nothing(tmp_path: Path) -> None:
    with hub_at(tmp_path / "hub") as hub, link_to(hub.address, tmp_path / "site") as link:
        hub.open(JOB, {NORTH: "north"}, b"one")
        hub.offer(JOB, [ask_for(TREE)])
        offered(link)
        hub.close(JOB)
        assert event(link, Closed) == Closed(JOB)
        until(lambda: not list((tmp_path / "site").rglob("*.*")), "the site keeps something")
        assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file()]
        with pytest.raises(RemoteError, match="not open"):
            hub.online(JOB)


def test_invitations_are_answered_and_progress_is_told(tmp_path: Path) -> None:
    with hub_at(tmp_path / "hub") as hub:
        hub.open(JOB, {NORTH: "north"}, b"one")
        assert (hub.progress(JOB)[NORTH].doing, hub.online(JOB)) == ("offline", frozenset())
        with link_to(hub.address, tmp_path / "site") as link:
            assert event(link, Invited) == Invited(JOB, (NORTH,), b"one")
            link.consent(JOB, False, "no such column", b"{}")
            until(lambda: hub.consents(JOB) == {"north": Consent(False, "no such column", b"{}")}, "no answer came")
            assert "no such column" in hub.progress(JOB)[NORTH].text
            hub.offer(JOB, [ask_for(TREE)])
            hub.open(JOB, {NORTH: "north"}, b"two")
            assert event(link, Invited) == Invited(JOB, (NORTH,), b"two")
            link.consent(JOB, True)
            got = offered(link)
            link.say(JOB, PLACE, 3, 10)
            until(lambda: hub.progress(JOB)[NORTH][:3] == ("training", 3, 10), f"{hub.progress(JOB)}")
            assert hub.progress(JOB)[NORTH].place == PLACE == (got.round, got.client, got.work)
        until(lambda: hub.progress(JOB)[NORTH].doing == "offline", "the hub did not see it go")


SITE = """
import sys
from pathlib import Path
from atoll.remote.link import Link
from atoll.remote.values import Invited, Offered
from tests.remote.ends import QUICK, reply, tree_of
link = Link(sys.argv[1], None, "north", Path(sys.argv[2]), insecure=True, limits=QUICK)
for event in link.events(60.0):
    if isinstance(event, Invited):
        link.consent(event.job, True)
    if isinstance(event, Offered):
        link.answer(event.job, reply(event.assignment))
"""


@pytest.mark.slow
def test_a_site_that_is_killed_in_mid_transfer_ends_its_work_after_a_restart(tmp_path: Path) -> None:
    tree = tree_of(2_000_000)
    with hub_at(tmp_path / "hub") as hub:
        hub.open(JOB, {NORTH: "north"})
        hub.offer(JOB, [ask_for(tree)])
        for way, after in (("down", 3_000_000), ("up", 3_000_000), ("down", None)):
            line = Proxy(hub.address, way, after)  # the first dies while it fetches, the second while it sends
            root = Path(__file__).parents[2]
            site = subprocess.Popen(
                [sys.executable, "-c", SITE, line.address, str(tmp_path / "site")],
                cwd=root,
                env={**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}"},
            )
            if after is not None:
                until(lambda line=line: line.cuts, "the line was never cut")
            else:
                answer = answer_of(hub)
                assert isinstance(answer, Update)
                assert torch.equal(answer.tree["w"], tree["w"])
                hub.acknowledge(JOB, answer)
                until(lambda: not list((tmp_path / "site" / "outbox").glob("*.json")), "the outbox is not empty")
            site.send_signal(signal.SIGKILL)
            site.wait(SOON_S)
            line.close()


def test_what_was_accepted_outlives_the_withdrawal_of_the_rest(tmp_path: Path) -> None:
    """One site, two clients: one was heard and the other is cancelled, while the line is cut."""
    with hub_at(tmp_path / "hub") as hub:
        hub.open(JOB, {NORTH: "north", SOUTH: "north"})
        hub.offer(JOB, [ask_for(TREE), ask_for(TREE, SOUTH)])
        line = Proxy(hub.address)
        with link_to(line.address, tmp_path / "site") as link:
            first, second = offered(link), offered(link)
            link.answer(JOB, reply(first))
            answer = answer_of(hub)
            assert link.wanted(JOB, Place(0, second.client, "train"))
            line.close()
            until(lambda: hub.progress(JOB)[second.client].doing == "offline", "the hub did not see it go")
            assert isinstance(answer, Update)
            hub.acknowledge(JOB, answer)
            hub.cancel(JOB, 0, "train")
        with link_to(hub.address, tmp_path / "site") as link:
            seen = []
            for each in link.events(SOON_S):
                seen.append(each)
                if isinstance(each, Cancelled):
                    break
            assert Acknowledged(JOB, Place(0, first.client, "train")) in seen


def test_a_job_that_fails_tells_who_is_there_and_who_comes(tmp_path: Path) -> None:
    with hub_at(tmp_path / "hub") as hub:
        hub.open(JOB, {NORTH: "north", SOUTH: "south"})
        hub.offer(JOB, [ask_for(TREE)])
        with link_to(hub.address, tmp_path / "site") as link:
            place = Place(0, offered(link).client, "train")
            assert link.wanted(JOB, place)
            hub.fail(JOB, "out of disk")
            assert event(link, Closed) == Closed(JOB, "out of disk")
            assert not link.wanted(JOB, place)
            with link_to(hub.address, tmp_path / "late", "south") as late:
                assert event(late, Closed) == Closed(JOB, "out of disk")
            hub.open(JOB, {NORTH: "north", SOUTH: "south"})
            assert event(link, Invited)
            hub.offer(JOB, [ask_for(TREE)])
            link.answer(JOB, reply(offered(link)))
            assert answer_of(hub)


def test_what_jobs_left_half_way_is_swept(tmp_path: Path) -> None:
    """Parts of which no job tells any more, at both ends; an end tells of what is outstanding, and keeps nothing else."""
    hub_parts, site_parts = tmp_path / "hub" / "jobs" / spelled(JOB) / "inbox", tmp_path / "site" / "trees"
    for folder in (hub_parts, site_parts):
        folder.mkdir(parents=True)
        (folder / f"{'0' * 64}.part").write_bytes(b"half")
    with hub_at(tmp_path / "hub") as hub, link_to(hub.address, tmp_path / "site") as link:
        hub.open(JOB, {NORTH: "north"})
        hub.offer(JOB, [ask_for(TREE)])
        link.answer(JOB, reply(offered(link)))
        answer = answer_of(hub)
        assert isinstance(answer, Update)
        hub.acknowledge(JOB, answer)
        settled(link)
        assert not list(hub_parts.iterdir())
        assert not list(site_parts.iterdir())
