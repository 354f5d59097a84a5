"""Virtual time: any engine computes, and a fleet says when each answer would have landed; the clock jumps from one to the next.

finish = sent + bytes down / link + seconds an example x examples + bytes up / link. Answers come out in the order of their
finish, whatever the order in which the inner engine gives them, so that a run depends on its seed alone. An update's size, and
with it the end of its upload, is known only when it has been computed: until then an assignment stands in line at a moment
before which it can't land, and it is computed when that moment is the next of all. So work that is cancelled before its turn
is, but for a few `ahead`, not computed at all.

Times are whole ticks of 2^-20 s: their sums and differences are exact, and a run that is resumed has the same.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from atoll.engines.serial import Clients, examples_of
from atoll.errors import ConfigError
from atoll.fleets.fleet import Device, Fleet, Spent, spent
from atoll.interfaces import Engine, Journal
from atoll.types import HELD_OUT, Answer, Assignment, Batching, ClientId, Failure, Local, Update
from atoll.wire import frame

TICK = 2.0**20  # ticks a second
PATIENCE_S = 3600.0  # real seconds without any answer of the inner engine after which it is given up on


@dataclass(order=True, slots=True)
class Errand:
    """An assignment on its way; in line by when it lands, or before which moment it can't."""

    due_s: float
    round: int
    client: ClientId
    work: str
    assignment: Assignment = field(compare=False)
    compute_s: float = field(compare=False)
    device: Device | None = field(compare=False)  # None: the server's own, held-out examples
    answer: Answer | None = field(default=None, compare=False)
    lands: bool = field(default=False, compare=False)  # `due_s` is exact and `answer` there
    asked: bool = field(default=False, compare=False)  # the inner engine has it
    cost: Spent = field(default=Spent(), compare=False)  # of one that lands


class Virtual:
    """Engine in virtual time over `inner`, which works for the same `locals_` and `clients`.

    `clock_s`: where the clock begins, for a run that is resumed. `lease_s`: whoever would take longer has expired then.
    `ahead`: so many assignments, those that are next in line, are at the inner engine at a time. `spent` is what all
    devices have spent, those whose work was lost or cancelled included; answers tell what each has in their metrics.

    >>> from atoll.engines.serial import serial
    >>> from atoll.fleets.steady import uniform
    >>> engine = Virtual(serial({}, {}), {}, {}, uniform(), clock_s=60.0)
    >>> list(engine.results(10.0)), engine.now()
    ([], 60.0)
    """

    def __init__(
        self,
        inner: Engine,
        locals_: Mapping[str, Local[Any]],
        clients: Clients,
        fleet: Fleet,
        clock_s: float = 0.0,
        lease_s: float = math.inf,
        ahead: int = 16,
    ) -> None:
        if ahead < 1:
            raise ConfigError(f"virtual ahead = {ahead}: must be 1 or more")
        self._inner, self._locals, self._clients, self._fleet = inner, locals_, clients, fleet
        self._clock_s, self._lease_s, self._ahead = clock_s, lease_s, ahead
        self._line: list[Errand] = []
        self._asked: dict[tuple[int, ClientId, str], Errand] = {}  # at the inner engine, unanswered
        self.spent = Spent()

    def available(self, clients: Sequence[ClientId]) -> Sequence[ClientId]:
        there = self._fleet.online(clients, self._clock_s)
        if there or not clients:
            return there
        begins_s = _tick(min(self._fleet.session(client, self._clock_s)[0] for client in clients))
        following = self._next()
        if not math.isfinite(begins_s) or (following and following.due_s < begins_s):
            return []  # none of them will ever be there again, or somebody at work is heard before
        self._clock_s = max(self._clock_s, begins_s)
        return self._fleet.online(clients, self._clock_s)

    def submit(self, assignments: Iterable[Assignment]) -> None:
        for assignment in assignments:
            heapq.heappush(self._line, self._errand(assignment))

    def results(self, timeout_s: float) -> Iterator[Answer]:
        until = _tick(self._clock_s + timeout_s)
        while errand := self._next(until):
            if errand.due_s > until:
                self._clock_s = max(self._clock_s, until)
                return
            heapq.heappop(self._line)
            self._clock_s = max(self._clock_s, errand.due_s)
            self.spent = self.spent.plus(errand.cost)
            assert errand.answer is not None
            answer = errand.answer
            del errand  # the caller alone holds what it is given
            yield answer
            del answer

    def acknowledge(self, update: Update) -> None:
        self._inner.acknowledge(update)

    def refuse(self, answer: Answer) -> None:
        self._inner.refuse(answer)

    def cancel(self, round: int, work: str) -> None:
        """Forget it, and count what its devices have spent by now."""
        late = [errand for errand in self._line if (errand.round, errand.work) == (round, work)]
        self._line = [errand for errand in self._line if (errand.round, errand.work) != (round, work)]
        heapq.heapify(self._line)
        for errand in late:
            self._asked.pop(_place(errand), None)
            self.spent = self.spent.plus(self._wasted(errand, self._clock_s))
            if isinstance(errand.answer, Update):
                self._inner.refuse(errand.answer)
        self._inner.cancel(round, work)

    def started(self, assignment: Assignment) -> bool:
        return True  # every device is its own

    def now(self) -> float:
        return self._clock_s

    def close(self) -> None:
        self._line.clear()
        self._asked.clear()
        self._inner.close()

    def follow(self, clock_s: float) -> None:
        """The clock stands at this moment, at least: what happened before a kill is told again."""
        self._clock_s = max(self._clock_s, clock_s)

    def _next(self, until: float = math.inf) -> Errand | None:
        """Who is heard next, and exactly when, as far as that is before `until`."""
        while self._line and not self._line[0].lands and self._line[0].due_s <= until:
            errand = self._line[0]
            self._compute(errand)
            heapq.heapreplace(self._line, errand)
        return self._line[0] if self._line else None

    def _errand(self, assignment: Assignment) -> Errand:
        """In line at the first moment at which it may land; at an exact one where no work need be done for that."""
        place = (assignment.round, assignment.client, assignment.work)
        if assignment.client.startswith(HELD_OUT):
            return Errand(self._clock_s, *place, assignment, 0.0, None)
        local, device = self._locals[assignment.work], self._fleet.device(assignment.client)
        examples = examples_of(self._clients, local, assignment.client)
        compute_s = device.example_s * (0 if examples is None else examples_read(len(examples), local.batching))
        errand = Errand(0.0, *place, assignment, compute_s, device)
        self._settle(errand, 0)
        return errand

    def _settle(self, errand: Errand, bytes_up: int) -> None:
        """When it lands with so many bytes up, or how it is lost before that."""
        sent_s, busy_s = errand.assignment.sent_s, _busy_s(errand, bytes_up)
        due_s, lost = self._ends(errand.client, sent_s, busy_s)
        if due_s > sent_s + self._lease_s:
            due_s, lost = sent_s + self._lease_s, ("expired", f"no answer in {self._lease_s:g} s of virtual time")
        errand.due_s = _tick(due_s)
        if not lost:
            return
        if isinstance(errand.answer, Update):
            self._inner.refuse(errand.answer)
        errand.cost = self._wasted(errand, due_s)
        errand.answer, errand.lands = Failure(errand.round, errand.client, errand.work, *lost), True

    def _ends(self, client: ClientId, sent_s: float, busy_s: float) -> tuple[float, tuple[str, str] | None]:
        """When a device has been busy for so long, through its sessions; or when, and how, it is lost."""
        left_s, at_s = busy_s, sent_s
        while True:
            begin, end = self._fleet.session(client, at_s)
            if self._fleet.offline == "lost" and begin > at_s:
                return at_s, ("lost", "the device was offline when it was asked")
            if begin == math.inf:
                return math.inf if self._lease_s < math.inf else at_s, ("lost", "the device has no session any more")
            at_s = max(at_s, begin)
            if at_s + left_s <= end:
                return at_s + left_s, None
            if self._fleet.offline == "lost":
                return end, ("lost", f"the device went offline after {end - sent_s:.0f} of {busy_s:.0f} s")
            if end > sent_s + self._lease_s:
                return end, None  # expired by then
            left_s, at_s = left_s - (end - at_s), end

    def _compute(self, errand: Errand) -> None:
        """The inner engine's answer to the errand that is next, and with the size of it the moment when it lands."""
        if not errand.asked or len(self._asked) <= self._ahead // 2:
            fresh = (t for t in heapq.nsmallest(2 * self._ahead, self._line) if not (t.asked or t.lands))
            chosen = [t for t, _ in zip(fresh, range(self._ahead), strict=False)]
            for each in chosen:
                each.asked = True
                self._asked[_place(each)] = each
            self._inner.submit([each.assignment for each in chosen])
        while errand.answer is None:
            heard = False
            for answer in self._inner.results(PATIENCE_S):
                heard = True
                asked = self._asked.pop(_place(answer), None)
                if asked is None:
                    self._inner.refuse(answer)
                else:
                    asked.answer = answer
                del answer
                if errand.answer is not None:
                    break
            if not heard:
                self._asked.pop(_place(errand), None)
                errand.answer = Failure(
                    errand.round, errand.client, errand.work, "lost", "the engine that computes holds no such work"
                )
        self._land(errand)

    def _land(self, errand: Errand) -> None:
        """The answer as the server will hear it: with what it cost, or as the failure that the fleet makes of it."""
        errand.lands = True
        if errand.device is None:
            errand.due_s = max(errand.due_s, self._clock_s)
            if isinstance(errand.answer, Update):
                errand.answer = errand.answer._replace(metrics={**errand.answer.metrics, "seconds": 0.0})
            return
        if not isinstance(errand.answer, Update):
            errand.cost = self._wasted(errand, errand.due_s)
            return
        bytes_up = frame.size(errand.answer).total
        self._settle(errand, bytes_up)
        if isinstance(errand.answer, Update):  # and not lost on its way up
            busy_s, trip_s = _busy_s(errand, bytes_up), errand.due_s - errand.assignment.sent_s
            transfer_s, wait_s = busy_s - errand.compute_s, max(trip_s - busy_s, 0.0)
            bytes_down = frame.size(errand.assignment).total
            cost = errand.cost = spent(self._fleet.energy, errand.compute_s, transfer_s, wait_s, bytes_down, bytes_up)
            told = {"seconds": trip_s, "transfer_s": transfer_s, "wait_s": wait_s}
            told |= {"energy_j": cost.energy_j, "co2e_g": cost.co2e_g}
            errand.answer = errand.answer._replace(metrics={**errand.answer.metrics, **told})

    def _wasted(self, errand: Errand, until_s: float) -> Spent:
        """What a device had spent by a moment at which its work was given up: it receives, computes, then sends."""
        device, size = errand.device, frame.size(errand.assignment).total
        if device is None:
            return Spent()
        passed_s = max(until_s - errand.assignment.sent_s, 0.0)
        down_s = min(passed_s, size / device.down)
        compute_s = min(passed_s - down_s, errand.compute_s)
        rest_s = passed_s - down_s - compute_s
        up_s, wait_s = (0.0, rest_s) if self._fleet.offline == "pauses" else (rest_s, 0.0)
        return spent(self._fleet.energy, compute_s, down_s + up_s, wait_s, down_s * device.down, up_s * device.up)


class Followed:
    """A journal whose replayed answers set the clock of a virtual engine to when they were first heard.

    The driver sends the next client to work when an answer is heard: replayed, it must be sent at the same moment.
    """

    def __init__(self, journal: Journal, engine: Virtual) -> None:
        self._journal, self._engine = journal, engine
        self.begin, self.hold, self.places = journal.begin, journal.hold, journal.places

    def accept(self, answer: Answer) -> None:
        self._journal.accept(answer._replace(heard_s=self._engine.now()))

    def accepted(self, round: int) -> Iterator[Answer]:
        for answer in self._journal.accepted(round):
            self._engine.follow(answer.heard_s)
            yield answer


def examples_read(count: int, batching: Batching) -> int:
    """How many examples a fold reads of a client that has `count`.

    >>> examples_read(10, Batching(batch_size=4, epochs=2)), examples_read(10, Batching(batch_size=4, steps=4))
    (20, 14)
    """
    if batching.steps is None or not count:
        return count * batching.epochs
    size = min(batching.batch_size or count, count)
    passes, rest = divmod(batching.steps, -(-count // size))
    return passes * count + min(rest * size, count)


def _busy_s(errand: Errand, bytes_up: int) -> float:
    assert errand.device is not None
    return frame.size(errand.assignment).total / errand.device.down + errand.compute_s + bytes_up / errand.device.up


def _tick(at_s: float) -> float:
    """The next whole tick."""
    return math.ceil(at_s * TICK) / TICK if math.isfinite(at_s) else at_s


def _place(x: Errand | Answer) -> tuple[int, ClientId, str]:
    return x.round, x.client, x.work
