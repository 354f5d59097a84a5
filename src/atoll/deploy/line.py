"""A site's line to its coordinator, as the site program sees it, and what stands between the two: a policy, a drain, a denial."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from typing import Protocol

from atoll.remote.values import Place, SiteEvent
from atoll.types import Answer


class Line(Protocol):
    """What a site program needs of a link (`remote.link.Link`)."""

    def events(self, timeout_s: float) -> Iterator[SiteEvent]:
        """What the coordinator says."""

    def consent(self, job: str, accepted: bool, reason: str = "", about: bytes = b"") -> None:
        """Answer an invitation."""

    def answer(self, job: str, answer: Answer) -> None:
        """Put an answer in the outbox."""

    def say(self, job: str, place: Place, step: int, steps: int = 0) -> None:
        """How far a training is."""

    def log(self, job: str, line: str) -> None:
        """A line of the site's log."""

    def wanted(self, job: str, place: Place) -> bool:
        """Whether the work under way is still wanted."""


class Through:
    """A line over another one, to which it passes everything on; who stands there overrides what it changes."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def events(self, timeout_s: float) -> Iterator[SiteEvent]:
        """As the line's."""
        with heard(self._line, timeout_s) as events:
            yield from events

    def consent(self, job: str, accepted: bool, reason: str = "", about: bytes = b"") -> None:
        """As the line's."""
        self._line.consent(job, accepted, reason, about)

    def answer(self, job: str, answer: Answer) -> None:
        """As the line's."""
        self._line.answer(job, answer)

    def say(self, job: str, place: Place, step: int, steps: int = 0) -> None:
        """As the line's."""
        self._line.say(job, place, step, steps)

    def log(self, job: str, line: str) -> None:
        """As the line's."""
        self._line.log(job, line)

    def wanted(self, job: str, place: Place) -> bool:
        """As the line's."""
        return self._line.wanted(job, place)


def heard(line: Line, timeout_s: float) -> contextlib.closing[Generator[SiteEvent, None, None]]:
    """A line's events, for a `with`: who leaves in the middle closes them at once, and what was not dealt with is kept."""

    def events() -> Generator[SiteEvent, None, None]:
        yield from line.events(timeout_s)

    return contextlib.closing(events())


def serve(line: Line, take: Callable[[SiteEvent], None], stopped: Callable[[], bool], look_s: float) -> None:
    """Take what the coordinator says until `stopped()`; it is asked between events, and `look_s` after the last one."""
    while not stopped():
        with heard(line, look_s) as events:
            for event in events:
                take(event)
                if stopped():
                    break


class Pace:
    """Says when `every_s` have gone by: for what is looked up at each step of a training, and costs more than a step may."""

    def __init__(self, every_s: float) -> None:
        self._every_s, self._last_s = every_s, time.monotonic()

    def due(self) -> bool:
        """They have, since it last said so."""
        if time.monotonic() < self._last_s + self._every_s:
            return False
        self._last_s = time.monotonic()
        return True
