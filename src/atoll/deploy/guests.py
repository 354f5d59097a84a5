"""An open job: any site with a certificate may take part, as the one client of its own name, and comes in between two rounds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from atoll.engines.remote import LOOK_S, NOBODY_S
from atoll.errors import RoundError
from atoll.store import files
from atoll.types import HELD_OUT, ClientId, Update

if TYPE_CHECKING:
    from atoll.job.schema import Job
    from atoll.remote.hub import Hub
    from atoll.store.run import Run


class Grown(Exception):
    """Sites have come in: the run goes on from its checkpoint with the larger population."""


class Guests:
    """Who has taken part so far, in a file of the run's folder, and who is invited to."""

    def __init__(self, hub: Hub, run: Run, brief: Callable[[Iterable[str]], bytes], safe: Iterable[Update]) -> None:
        self._hub, self._job, self._brief, self._safe = hub, run.id, brief, list(safe)
        self._file = run.folder / "members.json"
        self._members = set(json.loads(self._file.read_text())) if self._file.exists() else set[str]()
        self._invited: set[str] = set()

    def gather(self, wanted: int, wait: Callable[[], None]) -> None:
        """Return when so many take part, or have before. Raises RoundError where they do not come for a day."""
        ends_s = time.monotonic() + NOBODY_S
        self.look()
        while len(self._members | self.newcomers()) < wanted:
            if time.monotonic() > ends_s:
                raise RoundError(f"fewer than {wanted} sites were there for {NOBODY_S / 3600:g} h; start more, then serve again")
            wait()
            self._hub.wait(self._job, LOOK_S)
            self.look()
        self._members |= self.newcomers()
        told = json.dumps(sorted(self._members)).encode()
        with files.replacing(self._file, len(told)) as file:
            file.write(told)

    def look(self) -> None:
        """Invite who has called, and was not invited yet."""
        called = self._members | {site for site in self._hub.sites() if site and not site.startswith(HELD_OUT)}
        if not self._invited or not called <= self._invited:
            self._invited |= called
            self._hub.open(self._job, {ClientId(site): site for site in self._invited}, self._brief(self._invited), self._safe)

    def newcomers(self) -> set[str]:
        """Who takes part, and did not when the population was last counted."""
        return {str(client) for client in self._hub.online(self._job)} - self._members

    def seated(self, job: Job) -> Job:
        """The job with who takes part in its [sites]."""
        return job.model_copy(update={"sites": {site: [site] for site in sorted(self._members)}})
