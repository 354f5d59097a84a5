"""A site's link through its gate: the site program sees only what may come in, the coordinator only what may go out.

It speaks as the link does, so that the site program is the same with a policy and without one.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from atoll.deploy.brief import job_of, said_by
from atoll.deploy.line import Line, Pace, Through, heard
from atoll.deploy.rules.approvals import Admission
from atoll.deploy.rules.declared import Promise, promises
from atoll.deploy.rules.gate import Gate
from atoll.deploy.rules.judge import Offer, Usage
from atoll.deploy.rules.permit import WITHHELD, Declared, declared_by_assignment
from atoll.errors import AtollError
from atoll.job.schema import Named
from atoll.job.text import Document
from atoll.remote.values import Acknowledged, Closed, Invited, Offered, Place, Refused, SiteEvent, place_of
from atoll.types import Answer

if TYPE_CHECKING:
    from atoll.federation import Federation

LOOK_S = 1.0  # between two looks at the consent, while work is under way


class Gated(Through):
    """A link and the gate before it. `data`: a document whose [data] is the site's own, read in the place of the jobs'.

    Invitations that wait (for consent, for the hour, for another job to end) are kept here and judged again at each look.
    """

    def __init__(self, line: Line, gate: Gate, data: Document | None = None) -> None:
        """Hold this process to the policy's number of threads."""
        import torch

        super().__init__(line)
        self._gate, self._pace = gate, Pace(LOOK_S)
        self._data = None if data is None or "data" not in data.values else Named.of(data.values["data"])
        if gate.policy.resources.threads is not None:
            torch.set_num_threads(min(gate.policy.resources.threads, torch.get_num_threads()))
        self._threads = torch.get_num_threads
        self._offers: dict[str, tuple[Invited, Offer]] = {}
        self._joined: set[str] = set()  # jobs that the site program was told of
        self._said: dict[str, str] = {}  # why not, as the coordinator was told
        self._promises: dict[str, Mapping[str, Promise]] = {}  # by job, and kind of work
        self._declared: dict[tuple[str, Place], Declared] = {}  # of work under way

    def built(self, job: str, federation: Federation, rounds: int) -> None:
        """The site has built its half of a job: what the job's algorithm declares is what its answers are judged by."""
        self._promises[job] = promises(federation, rounds)

    def events(self, timeout_s: float) -> Iterator[SiteEvent]:
        """As the link's, but for what may not come in."""
        for job in self._offers.keys() - self._joined:
            if (invited := self._admitted(job)) is not None:
                yield invited
        with heard(self._line, timeout_s) as events:
            for event in events:
                passed = self._passed(event)
                if passed is not None:
                    yield passed

    def consent(self, job: str, accepted: bool, reason: str = "", about: bytes = b"") -> None:
        """As the link's; why a site can't take part may quote data, and leaves only where reasons may."""
        if not accepted:
            self._gate.log.append("refused", job=job[:200], sender=self._gate.to, refusals=[reason[:1000]])
        self._line.consent(job, accepted, reason if self._gate.policy.leaves.reasons or not reason else WITHHELD, about)

    def answer(self, job: str, answer: Answer) -> None:
        """As the link's, for what may leave, once the log has it."""
        declared = self._declared.pop((job, place_of(answer)), Declared(answer.work))
        self._line.answer(job, self._gate.leave(job, answer, declared))

    def log(self, job: str, line: str) -> None:
        """As the link's, where the policy lets logs leave."""
        if self._gate.policy.leaves.logs:
            self._line.log(job, line)

    def wanted(self, job: str, place: Place) -> bool:
        """As the link's; and no more once the site has denied the job, which is looked up every second."""
        if not self._line.wanted(job, place):
            return False
        if job not in self._offers or not self._pace.due():
            return True
        admission = self._judged(job)
        if admission.status != "denied":
            return True
        self._joined.discard(job)
        self._refuse(job, admission.text, admission.status)
        return False

    def _passed(self, event: SiteEvent) -> SiteEvent | None:
        if isinstance(event, Invited):
            return self._invited(event)
        if isinstance(event, Offered):
            return self._offered(event)
        if isinstance(event, Closed):
            self._offers.pop(event.job, None)
            self._joined.discard(event.job)
            self._promises.pop(event.job, None)
        if isinstance(event, Acknowledged) and self._gate.withheld(event.job, event.place):
            return Refused(event.job, event.place)  # what was acknowledged is the failure; the update never left
        return event

    def _invited(self, event: Invited) -> Invited | None:
        try:
            job, _ = job_of(event.brief)
            values, signature = said_by(event.brief)
            offer = Offer(job, values, signature=signature, run=event.job, sender=self._gate.to, data=self._data)
        except AtollError as error:
            told = str(error).replace("\n", "; ")  # it quotes the job, not the data
            if self._said.get(event.job) != told:
                self._gate.log.append("refused", job=event.job[:200], sender=self._gate.to, refusals=[told[:1000]])
            self._refuse(event.job, told)
            return None
        known = self._offers.get(event.job)
        if known is not None and (known[1].text, known[1].signature) != (offer.text, offer.signature):
            self._joined.discard(event.job)
        self._offers[event.job] = (event, offer)
        return self._admitted(event.job)

    def _admitted(self, job: str) -> Invited | None:
        """The invitation, where the site takes part now; else the coordinator is told why not, once for each reason."""
        admission = self._judged(job)
        if admission.status == "admitted":
            self._joined.add(job)
            self._said.pop(job, None)
            return self._offers[job][0]
        self._refuse(job, admission.text, admission.status)
        return None

    def _judged(self, job: str) -> Admission:
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        usage = Usage(
            jobs=len(self._joined - {job}),
            threads=self._threads(),
            memory_bytes=kib if sys.platform == "darwin" else kib * 1024,
        )
        return self._gate.admit(self._offers[job][1], usage)

    def _refuse(self, job: str, why: str, status: str = "refused") -> None:
        if self._said.get(job) != why:
            self._said[job] = why
            self._line.consent(job, False, why, status.encode())

    def _offered(self, event: Offered) -> Offered | None:
        """An assignment of a job that the site still takes part in; another one is answered here."""
        job, place = event.job, place_of(event.assignment)
        admission = self._judged(job) if job in self._offers else Admission("refused", "the site was not invited to this job")
        failure = self._gate.enter(job, event.assignment, admission)
        if failure is not None:
            self._line.answer(job, failure)
            if admission.status != "admitted":
                self._joined.discard(job)
                self._refuse(job, admission.text, admission.status)
            return None
        promise = self._promises.get(job, {}).get(place.work)
        self._declared[job, place] = promise.of(event.assignment) if promise else declared_by_assignment(event.assignment)
        return event
