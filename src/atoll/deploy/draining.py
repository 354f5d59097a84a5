"""A site's link while the site may drain: then no offer is taken up, and answers are still sent and acknowledged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from atoll.deploy.line import Through, heard
from atoll.remote.values import Offered, Place, SiteEvent, place_of
from atoll.types import Answer, Update

if TYPE_CHECKING:
    from atoll.remote.link import Link


class Draining(Through):
    """A link that gives out no work once `asked()`; `answered` hears of each answer: what it is, and the seconds it took.

    An offer that is not taken up is lost with the process, and comes again to the next one.
    """

    def __init__(
        self, link: Link, asked: Callable[[], bool], answered: Callable[[str, float | None], None] = lambda *_: None
    ) -> None:
        super().__init__(link)
        self._link, self._asked, self._answered = link, asked, answered
        self._begun: dict[tuple[str, Place], float] = {}

    @property
    def done(self) -> bool:
        """The drain has nothing more to wait for: all answers are settled, or the coordinator is not there to settle them."""
        return self._asked() and not (self._link.online and self._link.outbox())

    def events(self, timeout_s: float) -> Iterator[SiteEvent]:
        """As the link's."""
        with heard(self._link, timeout_s) as events:
            for event in events:
                if not isinstance(event, Offered):
                    yield event
                elif not self._asked():
                    self._begun[event.job, place_of(event.assignment)] = time.monotonic()
                    yield event

    def answer(self, job: str, answer: Answer) -> None:
        """As the link's."""
        super().answer(job, answer)
        began_s = self._begun.pop((job, place_of(answer)), None)
        took_s = None if began_s is None else time.monotonic() - began_s
        self._answered("update" if isinstance(answer, Update) else "failure", took_s)
