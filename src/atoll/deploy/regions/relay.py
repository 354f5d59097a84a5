"""A relay: upward a site that speaks for one client, its region; downward a coordinator that the region's sites join.

What crosses upward is one update a round and piece of work, the mean of those of the region's clients, and never that of one
of them (`min_updates`). The relay holds no data. It may be killed at any moment: what is unanswered is offered again, its
clients' answers are in its journal, and the region's answer has the same bits.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from atoll.deploy.line import Line, serve
from atoll.deploy.regions.region import Region
from atoll.deploy.regions.regional import Part, Regional
from atoll.deploy.regions.shelf import Shelf
from atoll.errors import AtollError
from atoll.remote.spool import spelled
from atoll.remote.values import Acknowledged, Cancelled, Closed, Invited, Offered, Place, Refused, SiteEvent, place_of
from atoll.store.memories import FileMemories
from atoll.types import ClientId, Failure

if TYPE_CHECKING:
    from atoll.remote.hub import Hub


class Relay:
    """The jobs in which a region takes part, between the link to the coordinator and the hub of the region's sites."""

    def __init__(
        self, link: Line, hub: Hub, region: Region, folder: Path, say: Callable[..., None] = lambda *_, **__: None
    ) -> None:
        self._link, self._hub, self._region, self._folder, self._say = link, hub, region, folder, say
        self._jobs: dict[str, Regional] = {}
        self.ended: set[str] = set()  # jobs that the coordinator has closed
        self.failed: dict[str, str] = {}  # of these, those that have failed there, and why

    def serve(self, stopped: Callable[[], bool], look_s: float = 0.5) -> None:
        """Do what the coordinator says until `stopped()`; it is asked between events, and `look_s` after the last one."""

        def over() -> bool:
            for regional in self._jobs.values():
                if regional.trouble is not None:
                    raise regional.trouble
            return stopped()

        serve(self._link, self.take, over, look_s)

    def take(self, event: SiteEvent) -> None:
        """One thing that the coordinator says."""
        job = event.job
        if isinstance(event, Invited):
            self._join(event)
        elif isinstance(event, Offered):
            if job in self._jobs:
                self._jobs[job].give(event.assignment)
            else:
                told = "this relay does not take part in the job"
                self._link.answer(job, Failure(*place_of(event.assignment), "invalid", told))
        elif isinstance(event, Acknowledged):
            self._memories(job).commit(event.place.client, event.place.round, event.place.work)
            self._settle(job, event.place, True)
        elif isinstance(event, Refused):
            self._unwanted(job, event.place)
        elif isinstance(event, Cancelled):
            client = self._jobs[job].part.client if job in self._jobs else ClientId("")
            self._unwanted(job, Place(event.round, client, event.work))
        elif isinstance(event, Closed):
            self._end(event)

    @property
    def idle(self) -> bool:
        """Nothing that the region was asked is unanswered."""
        return all(regional.idle for regional in self._jobs.values())

    def close(self) -> None:
        """End the threads; what is open is gone on with by the next relay over the same folder."""
        for regional in self._jobs.values():
            regional.stop()

    def _join(self, invited: Invited) -> None:
        """Build what is to be known of the job and invite the region's sites, or say why that can't be."""
        job, known = invited.job, self._jobs.get(invited.job)
        self.ended.discard(job)
        self.failed.pop(job, None)
        if known is None or known.part.invited != invited:
            try:
                part = Part(invited, self._region)
            except AtollError as error:
                told = str(error).replace("\n", "; ")
                self._say(f"not taking part: {told}", job=job)
                self._link.consent(job, False, told)
                return
            if known is not None:
                known.stop()
            regional = Regional(part, self._region, self._hub, self._link, self._shelf(job), self._memories(job), self._say)
            self._jobs[job] = regional
            regional.settle()  # what was settled above when the region's sites could not be told
            self._say(f"taking part as {part.client}, with {len(self._region.sites)} clients", job=job)
        self._link.consent(job, True)

    def _unwanted(self, job: str, place: Place) -> None:
        self._memories(job).discard(place.client, place.round, place.work)
        regional = self._jobs.get(job)
        if regional is None or not regional.withdraw(place.round, place.work):
            self._settle(job, place, False)

    def _settle(self, job: str, place: Place, accepted: bool) -> None:
        """Written first, then told: at once, or when the job is open again."""
        if not self._shelf(job).exists():
            return
        Shelf(self._shelf(job)).settle(place, accepted)
        if job in self._jobs:
            self._jobs[job].settle()

    def _end(self, closed: Closed) -> None:
        """The job is over above, well or not, and so it is here."""
        job, regional = closed.job, self._jobs.pop(closed.job, None)
        if regional is not None:
            regional.stop()
        if closed.failed:
            self.failed[job] = closed.failed
            self._hub.fail(job, closed.failed)
        else:
            self._hub.close(job)
        shutil.rmtree(self._shelf(job), ignore_errors=True)
        self.ended.add(job)
        self._say(f"the job has failed at its coordinator: {closed.failed}" if closed.failed else "the job has ended", job=job)

    def _shelf(self, job: str) -> Path:
        return self._folder / "region" / spelled(job)

    def _memories(self, job: str) -> FileMemories:
        return FileMemories(self._folder / "memory" / spelled(job))
