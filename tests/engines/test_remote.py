"""The remote engine obeys the laws of an engine, waits for who is away, and settles what nobody waits for."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch

from atoll.engines.absence import Terms
from atoll.engines.remote import Everybody, Remote
from atoll.engines.serial import Clients, serial
from atoll.errors import RoundError
from atoll.flight import Flight
from atoll.interfaces import Memories
from atoll.policy import Policy
from atoll.remote.values import Acknowledged, Cancelled, Doing, Offered, Place, Progress, Refused
from atoll.store.memories import Kept
from atoll.testing.engine import check_engine
from atoll.types import Answer, Assignment, ClientId, Failure, Local, Update
from tests.deploy.wire import End, Wire


class Anybody:
    """No cohort is kept."""

    def __init__(self, kept: frozenset[ClientId] | None = None) -> None:
        self._kept, self.noted = kept, list[ClientId]()

    def kept(self) -> frozenset[ClientId] | None:
        return self._kept

    def note(self, clients: Iterable[ClientId]) -> None:
        self.noted = list(clients)


class Everywhere(dict[ClientId, str]):
    """One site speaks for everybody."""

    def __missing__(self, client: ClientId) -> str:
        return "site"


class Elsewhere(Remote):
    """The engine, and a site that answers in a thread of its own."""

    def __init__(self, locals_: Mapping[str, Local[Any]], clients: Clients, memories: Memories) -> None:
        wire = Wire()
        wire.sites, self._over = Everywhere(), threading.Event()
        end = End(wire, "site")
        self._site = threading.Thread(target=answering, args=(end, locals_, clients, memories, self._over))
        self._site.start()
        self._events = wire.events["site"]
        super().__init__(wire, "job", set(), Anybody(), locals_, {}, Kept())  # type: ignore[arg-type]

    def acknowledge(self, update: Update) -> None:
        super().acknowledge(update)
        self._heard()

    def refuse(self, answer: Answer) -> None:
        super().refuse(answer)
        self._heard()

    def _heard(self) -> None:
        """The law looks at the memory at once; the site hears of it a moment later."""
        heard = threading.Event()
        self._events.put(heard)
        assert heard.wait(30)

    def close(self) -> None:
        self._over.set()
        self._site.join(30)
        super().close()


def answering(end: End, locals_: Mapping[str, Local[Any]], clients: Clients, memories: Memories, over: threading.Event) -> None:
    engine = serial(locals_, clients, memories)
    while not over.is_set():
        for event in end.events(0.02):
            if isinstance(event, threading.Event):
                event.set()
            elif isinstance(event, Offered):
                engine.submit([event.assignment])
                (answer,) = engine.results(60.0)
                end.answer(event.job, answer)
            elif isinstance(event, Acknowledged):
                memories.commit(event.place.client, event.place.round, event.place.work)
            elif isinstance(event, Refused):
                memories.discard(event.place.client, event.place.round, event.place.work)
            elif isinstance(event, Cancelled):
                for client in [*clients, ClientId("nobody")]:
                    memories.discard(client, event.round, event.work)


def test_the_laws_of_an_engine() -> None:
    check_engine(Elsewhere)


def engine(
    wire: Wire, patience_s: float = 30.0, accepted: Iterable[Any] = (), cohort: Any = None, members: Any = None, **terms: Any
) -> Remote:
    rest = Terms(patience_s, **terms), members or Everybody()
    return Remote(wire, "job", set(accepted), cohort or Anybody(), {}, {}, Kept(), *rest)  # type: ignore[arg-type]


A, B = ClientId("a"), ClientId("b")


def test_a_round_waits_for_all_of_its_sites() -> None:
    wire = Wire()
    wire.sites = {A: "north", B: "south"}
    wire.joined = {"north"}
    threading.Timer(0.3, wire.joined.add, ["south"]).start()
    assert engine(wire).available([A, B]) == [A, B]


def test_who_stays_away_is_waited_for_once() -> None:
    wire = Wire()
    wire.sites, wire.joined = {A: "north", B: "south"}, {"north"}
    waiting = engine(wire, patience_s=0.3)
    began = time.monotonic()
    assert waiting.available([A, B]) == [A]
    first_s = time.monotonic() - began
    assert waiting.available([A, B]) == [A]
    assert time.monotonic() - began - first_s < first_s
    wire.joined.add("south")
    assert waiting.available([A, B]) == [A, B]


def test_a_round_begun_again_asks_whom_it_asked() -> None:
    wire, cohort = Wire(), Anybody(frozenset({B}))
    wire.sites, wire.joined = {A: "north", B: "south"}, {"north", "south"}
    again = engine(wire, cohort=cohort)
    assert again.available([A, B]) == [B], "of the open round"
    assert again.available([A, B]) == [A, B], "of the next"
    assert cohort.noted == [A, B]


def test_whose_site_stays_away_is_lost() -> None:
    wire = Wire()
    wire.sites, wire.joined = {A: "north"}, {"north"}
    End(wire, "north")
    asking = engine(wire, patience_s=0.2)
    asking.submit([Assignment(0, A, "train", {"w": torch.ones(1)}, 0)])
    wire.joined.clear()
    (lost,) = asking.results(30.0)
    assert isinstance(lost, Failure)
    assert lost.kind == "lost"
    assert "offline" in lost.reason


class Saying(Everybody):
    """Members of whom some have said no."""

    def __init__(self, **no: str) -> None:
        self.no = {ClientId(client): why for client, why in no.items()}

    def refusals(self) -> Mapping[ClientId, str]:
        return self.no


def work(client: ClientId, round: int = 0) -> Assignment:
    return Assignment(round, client, "train", {"w": torch.ones(1)}, 0)


def test_who_says_no_is_not_waited_for_and_what_it_was_asked_fails_at_once() -> None:
    wire = Wire()
    wire.sites, wire.joined = {A: "north", B: "south"}, {"north"}
    End(wire, "south")
    asking = engine(wire, patience_s=3600.0, members=Saying(b="no vote"))
    assert asking.available([A, B]) == [A]
    asking.submit([work(B)])
    (refused,) = asking.results(30.0)
    assert isinstance(refused, Failure)
    assert (refused.kind, refused.reason) == ("refused", "its site takes no part: no vote")


def test_a_job_that_everybody_refuses_ends_with_the_reason() -> None:
    wire = Wire()
    wire.sites = {A: "north"}
    with pytest.raises(RoundError, match="every site refuses the job, a since no vote"):
        engine(wire, patience_s=0.0, members=Saying(a="no vote")).available([A])


def test_who_has_been_away_for_long_is_lost_at_once_when_asked_again() -> None:
    wire = Wire()
    wire.sites, wire.joined = {A: "north", B: "south"}, {"north"}
    End(wire, "south")
    asking = engine(wire, patience_s=0.5)
    assert asking.available([A, B]) == [A]
    for round in (0, 1):
        asking.submit([work(B, round)])
        began = time.monotonic()
        (lost,) = asking.results(30.0)
        assert isinstance(lost, Failure)
        assert lost.kind == "lost"
        took_s = time.monotonic() - began
    assert took_s < 2.0, "an evaluation of everybody would wait in every round"


def test_a_round_begins_with_as_many_as_it_asks_and_where_work_goes_on_at_once() -> None:
    c = ClientId("c")
    wire = Wire()
    wire.sites, wire.joined = {A: "north", B: "south", c: "west"}, {"north", "south"}
    for site in ("north", "south", "west"):
        End(wire, site)
    asking = engine(wire, patience_s=3600.0, enough=2)
    assert asking.available([A, B, c]) == [A, B]
    asking.submit([work(A)])
    wire.joined = {"north"}
    assert asking.available([B, c]) == [], "who is at work may answer: nobody waits for the others"


@pytest.mark.parametrize(
    ("doing", "silent_s", "still_s", "runs"),
    [
        ("waiting", 99.0, 29.0, False),
        ("waiting", 99.0, 31.0, True),
        ("training", 29.0, 99.0, False),
        ("training", 31.0, 0.0, True),
    ],
)
def test_a_lease_runs_for_work_that_does_not_move_and_in_the_queue_of_a_site_that_does_not(
    doing: Doing, silent_s: float, still_s: float, runs: bool
) -> None:
    class Still(Wire):
        def progress(self, job: str) -> Mapping[ClientId, Progress]:
            return {A: Progress(doing, silent_s=silent_s, place=Place(0, A, "train"))}

        def still_s(self, site: str) -> float:
            assert site == "a"
            return still_s

    assert engine(Still(), patience_s=30.0).started(work(A)) is runs


def test_work_that_moves_outlives_its_lease_and_work_that_stops_does_not() -> None:
    """Two leases of a tenth of a second pass while it moves; then it stands still."""
    looks = iter([0.0, 0.0, 0.0, *[9.0] * 99])

    class Moving(Wire):
        def progress(self, job: str) -> Mapping[ClientId, Progress]:
            return {A: Progress("training", silent_s=next(looks), place=Place(0, A, "train"))}

    wire = Moving()
    wire.sites, wire.joined = {A: "north"}, {"north"}
    End(wire, "north")
    flight = Flight(Policy(lease_s=0.1), engine(wire, patience_s=1.0))
    flight.send([work(A)])
    answer, _ = next(flight.answers("train", math.inf))
    assert isinstance(answer, Failure)
    assert answer.kind == "expired"
    assert next(looks) == 9.0, "as long as it moved, it was left alone"


@pytest.mark.parametrize("safe", [True, False])
def test_an_answer_that_nobody_waits_for_is_settled(safe: bool) -> None:
    wire = Wire()
    wire.sites, wire.joined = {A: "north", B: "north"}, {"north"}
    north = End(wire, "north")
    asking = engine(wire, accepted=[(3, A, "train")] if safe else [])
    asking.submit([Assignment(4, B, "train", {}, 0)])
    north.answer("job", Update(3, A, "train", {}, 1.0, {}))  # its acknowledgement was lost before a restart
    north.answer("job", Update(4, B, "train", {}, 1.0, {}))
    assert [answer.client for answer in asking.results(30.0)] == [B]
    told = [event for event in north.events(0.05) if not isinstance(event, Offered)]
    assert [type(event) for event in told] == [Acknowledged if safe else Refused]
