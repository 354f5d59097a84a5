"""A site without a policy takes part in every job, until a person there denies one, and again once that is taken back.

It speaks as the link does, as `deploy.rules.gated` does for a site with a policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from atoll.deploy.brief import job_of, said_by
from atoll.deploy.line import Line, Pace, Through, heard
from atoll.deploy.rules.approvals import Consents
from atoll.deploy.rules.gated import LOOK_S
from atoll.deploy.rules.judge import Offer
from atoll.errors import AtollError
from atoll.remote.values import Closed, Invited, Offered, Place, SiteEvent


class Willing(Through):
    """A link, and the consents in the site's folder. `to`: the coordinator, as the folder's owner knows it."""

    def __init__(self, line: Line, folder: Path, to: str) -> None:
        super().__init__(line)
        self._consents, self._to, self._pace = Consents(folder), to, Pace(LOOK_S)
        self._offers: dict[str, tuple[Invited, Offer]] = {}
        self._left: set[str] = set()  # jobs that were denied, as the coordinator was told

    def events(self, timeout_s: float) -> Iterator[SiteEvent]:
        """As the link's; an invitation comes again when a denial was taken back."""
        for job, (invited, _) in list(self._offers.items()):
            if not self._leaves(job) and job in self._left:
                self._left.discard(job)
                yield invited
        with heard(self._line, timeout_s) as events:
            for event in events:
                if isinstance(event, Closed):
                    self._offers.pop(event.job, None)
                    self._left.discard(event.job)
                if isinstance(event, Offered) and event.job in self._left:
                    continue  # the coordinator has been told, and withdraws it
                if not isinstance(event, Invited) or self._welcome(event):
                    yield event

    def wanted(self, job: str, place: Place) -> bool:
        """As the link's; and no more once the job is denied, which is looked up every second."""
        if not self._line.wanted(job, place):
            return False
        return job not in self._offers or not self._pace.due() or not self._leaves(job)

    def _welcome(self, invited: Invited) -> bool:
        try:
            job, _ = job_of(invited.brief)
            values, signature = said_by(invited.brief)
        except AtollError:
            return True  # the site program says what is wrong with it
        offer = Offer(job, values, signature=signature, run=invited.job, sender=self._to)
        self._consents.ask(offer)
        self._offers[invited.job] = invited, offer
        self._left.discard(invited.job)  # said again to every invitation
        return not self._leaves(invited.job)

    def _leaves(self, job: str) -> bool:
        """The job is denied; the coordinator is told, once."""
        consent = self._consents.of(self._offers[job][1])
        if consent is None or consent.status != "denied":
            return False
        if job not in self._left:
            self._left.add(job)
            self._line.consent(job, False, f"the site has left the job{f': {consent.why}' if consent.why else ''}", b"denied")
        return True
