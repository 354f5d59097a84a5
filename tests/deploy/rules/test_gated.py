"""A real site behind its gate; the coordinator is a list of what it says and of what it hears."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import torch

from atoll.deploy.brief import brief_of
from atoll.deploy.rules import gated
from atoll.deploy.rules.approvals import Consents
from atoll.deploy.rules.gate import Gate
from atoll.deploy.rules.gated import Gated
from atoll.deploy.rules.policy import read_policy
from atoll.deploy.site import Site
from atoll.deploy.verify import records, verify
from atoll.job.build import build
from atoll.job.check import check
from atoll.job.text import parse
from atoll.local.binding import binding
from atoll.remote.values import Acknowledged, Cancelled, Closed, Invited, Offered, Place, Refused, SiteEvent
from atoll.types import Answer, Assignment, ClientId, Failure, Update

JOB = """
atoll = 1
name = "figures"
rounds = 2
data = {name = "digits", clients = 2}
task = {name = "classification", model = {name = "mlp", inputs = 64, outputs = 10}}
local = {name = "sgd", lr = 0.1}
algorithm = "fedavg"
evaluation = {every = 0}
"""
NIGHTS = '[resources]\nhours = "20:00-06:00"'


class Line:
    """What the coordinator says, and what it hears."""

    def __init__(self) -> None:
        self.says: list[SiteEvent] = []
        self.consents: list[tuple[str, bool, str]] = []
        self.answers: list[Answer] = []
        self.lines: list[str] = []
        self.steps = 0

    def events(self, timeout_s: float) -> Iterator[SiteEvent]:
        while self.says:
            yield self.says.pop(0)

    def consent(self, job: str, accepted: bool, reason: str = "", about: bytes = b"") -> None:
        self.consents.append((job, accepted, reason))

    def answer(self, job: str, answer: Answer) -> None:
        self.answers.append(answer)

    def say(self, job: str, place: Place, step: int, steps: int = 0) -> None:
        self.steps = step

    def log(self, job: str, line: str) -> None:
        self.lines.append(line)

    def wanted(self, job: str, place: Place) -> bool:
        return True


@pytest.fixture(scope="module")
def clients() -> tuple[ClientId, ...]:
    return tuple(sorted(build(check(parse(JOB))).data.clients))


@pytest.fixture(scope="module")
def start() -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in binding(build(check(parse(JOB))).task.module).state().items()}


class Here:
    """A site and its gate, over a line that a test holds."""

    def __init__(self, folder: Path, policy: str, clients: tuple[ClientId, ...], start: dict[str, torch.Tensor]) -> None:
        self.hour, self.line, self.folder, self.clients, self.start = 12, Line(), folder, clients, start
        gate = Gate(folder, read_policy(f"site_policy = 1\n{policy}"), "university", lambda: datetime(2026, 11, 22, self.hour))
        self.gated = Gated(self.line, gate)
        self.site = Site(self.gated, folder)

    def hears(self, *events: SiteEvent) -> None:
        """The site deals with what the coordinator says."""
        self.line.says += events
        for event in self.gated.events(0.0):
            self.site.take(event)

    def invited(self) -> Invited:
        return Invited("figures-1", self.clients[:1], brief_of(parse(JOB).values, self.clients))

    def offered(self, round: int = 0, work: str = "train") -> Offered:
        return Offered("figures-1", Assignment(round, self.clients[0], work, self.start, 7))

    def events(self) -> list[str]:
        assert verify(self.folder / "audit.jsonl").findings == ()
        return [record["event"] for record in records(self.folder / "audit.jsonl")]


AUTOMATIC = 'approval = "automatic"\n'


def test_a_site_behind_an_open_gate_answers_as_without_one(
    tmp_path: Path, clients: tuple[ClientId, ...], start: dict[str, torch.Tensor]
) -> None:
    here = Here(tmp_path, AUTOMATIC, clients, start)
    here.hears(here.invited(), here.offered())
    assert here.line.consents == [("figures-1", True, "")]
    (answer,) = here.line.answers
    assert isinstance(answer, Update)
    assert here.line.steps > 0
    plain = Line()
    alone = Site(plain, tmp_path / "alone")
    for event in (here.invited(), here.offered()):
        alone.take(event)
    (same,) = plain.answers
    assert isinstance(same, Update)
    assert all(torch.equal(answer.tree[name], same.tree[name]) for name in same.tree)
    assert here.events() == ["opened", "admitted", "came", "left"]


def test_a_job_waits_for_a_person_and_then_begins_by_itself(
    tmp_path: Path, clients: tuple[ClientId, ...], start: dict[str, torch.Tensor]
) -> None:
    here = Here(tmp_path, 'approval = "manual"', clients, start)
    here.hears(here.invited())
    here.hears()
    ((job, accepted, reason),) = here.line.consents  # told once, however often it is looked at
    assert (job, accepted) == ("figures-1", False)
    assert "the site's consent is awaited: `atoll site approve" in reason
    Consents(tmp_path).decide("figures", "approved", by="anna")
    here.hears()
    assert here.line.consents[1:] == [("figures-1", True, "")]
    here.hears(here.offered())
    Consents(tmp_path).decide("figures", "denied", by="anna")
    here.hears(here.offered(1))
    assert [type(answer) for answer in here.line.answers] == [Update, Failure]
    assert here.line.consents[2:] == [("figures-1", False, "the site has denied this job")]


def test_a_denial_stops_what_is_being_computed_and_says_so(
    tmp_path: Path, clients: tuple[ClientId, ...], start: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gated, "LOOK_S", 0.0)
    here, steps = Here(tmp_path, AUTOMATIC, clients, start), list[int]()

    def say(job: str, place: Place, step: int, of: int = 0) -> None:
        steps.append(step)
        if len(steps) == 2:
            Consents(tmp_path).decide("figures", "denied", by="anna", why="a patient objects")

    monkeypatch.setattr(here.line, "say", say)
    here.hears(here.invited(), here.offered())
    assert steps == [1, 2], "it is one of several steps"
    assert not here.line.answers, "nothing leaves, and the coordinator withdraws what it asked"
    assert here.line.consents[-1] == ("figures-1", False, "the site has denied this job: a patient objects")
    Consents(tmp_path).decide("figures", "approved", by="anna")
    here.hears()
    here.hears(here.offered())
    (answer,) = here.line.answers
    assert isinstance(answer, Update)


def test_outside_its_hours_a_site_rests(tmp_path: Path, clients: tuple[ClientId, ...], start: dict[str, torch.Tensor]) -> None:
    here = Here(tmp_path, AUTOMATIC + NIGHTS, clients, start)
    here.hears(here.invited())
    assert here.line.consents[0][:2] == ("figures-1", False)
    here.hour = 22
    here.hears()
    here.hears(here.offered())
    assert here.line.consents[1:] == [("figures-1", True, "")]
    assert isinstance(here.line.answers[0], Update)


def test_an_update_that_may_not_leave_leaves_no_memory_either(
    tmp_path: Path, clients: tuple[ClientId, ...], start: dict[str, torch.Tensor]
) -> None:
    policy = AUTOMATIC + "[leaves]\nmetrics = []"
    here = Here(tmp_path, policy, clients, start)
    here.hears(here.invited(), here.offered())
    (answer,) = here.line.answers
    assert isinstance(answer, Failure)
    assert answer.reason == "refused by the site's policy: [leaves] metrics"
    assert here.events() == ["opened", "admitted", "came", "refused", "left"]
    place = Place(0, clients[0], "train")
    for each in (here, Here(tmp_path, policy, clients, start)):  # after a kill it is known too
        each.line.says.append(Acknowledged("figures-1", place))
        assert list(each.gated.events(0.0)) == [Refused("figures-1", place)]
    other = Acknowledged("figures-1", Place(1, clients[0], "train"))
    here.line.says += [other, Cancelled("figures-1", 0, "train"), Closed("figures-1")]
    assert list(here.gated.events(0.0)) == [other, Cancelled("figures-1", 0, "train"), Closed("figures-1")]


def test_work_without_an_invitation_is_answered_at_the_gate(
    tmp_path: Path, clients: tuple[ClientId, ...], start: dict[str, torch.Tensor]
) -> None:
    here = Here(tmp_path, AUTOMATIC, clients, start)
    here.hears(here.offered())
    assert isinstance(here.line.answers[0], Failure)
    assert here.events() == ["opened", "came", "refused", "left"]


def test_words_leave_where_they_may(tmp_path: Path, clients: tuple[ClientId, ...], start: dict[str, torch.Tensor]) -> None:
    shut = Here(tmp_path / "shut", AUTOMATIC, clients, start)
    wide = Here(tmp_path / "wide", AUTOMATIC + "[leaves]\nlogs = true\nreasons = true", clients, start)
    for here in (shut, wide):
        here.gated.log("figures-1", "a line")
        here.gated.consent("figures-1", False, "the column 'Jane Doe' is empty")
    assert (shut.line.lines, wide.line.lines) == ([], ["a line"])
    assert shut.line.consents[0][2] == "the site keeps the reason to itself"
    assert wide.line.consents[0][2] == "the column 'Jane Doe' is empty"


def test_a_brief_that_is_none_is_refused(tmp_path: Path, clients: tuple[ClientId, ...], start: dict[str, torch.Tensor]) -> None:
    here = Here(tmp_path, AUTOMATIC, clients, start)
    here.hears(Invited("figures-1", clients[:1], b"{"))
    assert here.line.consents[0][:2] == ("figures-1", False)
