"""What `atoll serve`, `join` and `relay` say: plain lines for people, or JSON for machines."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from atoll.cli.progress import Progress
from atoll.deploy.operations import logs

if TYPE_CHECKING:
    from atoll.types import Event


class Format(StrEnum):
    """How it is said."""

    text = "text"
    json = "json"


LogFormat = Annotated[
    Format, typer.Option("--log-format", envvar="ATOLL_LOG_FORMAT", help="Lines for people, or one JSON object a line.")
]
OpsAt = Annotated[
    str | None,
    typer.Option(
        "--ops",
        metavar="[HOST:]PORT",
        help="Answer /metrics, /healthz and /readyz here; a port alone: on this machine only.",
        show_default=False,
    ),
]
DrainS = Annotated[
    float, typer.Option("--drain-s", metavar="SECONDS", min=0.0, help="How long SIGTERM waits for what is open to end.")
]


class Following(Protocol):
    """A sink that shows one job as it goes."""

    def emit(self, event: Event) -> None: ...
    def say(self, what: str) -> None: ...
    def going_on_from(self, done: int) -> None: ...


class Voice(Protocol):
    """Says what happens. `fields` are what a machine may want to know of it."""

    def say(self, text: str, event: str = "said", level: str = "info", **fields: Any) -> None: ...
    def follow(self, job: str, rounds: int) -> AbstractContextManager[Following]: ...


def voice_of(form: Format) -> Voice:
    """The one that was asked for. With JSON, all that this process logs from here on is JSON, its last error too."""
    if form is Format.json:
        logs.begin()
        return Machines()
    return People()


class People:
    """One plain line each, after the name of its job; what is wrong goes to standard error."""

    def say(self, text: str, event: str = "said", level: str = "info", *, job: str | None = None, **fields: Any) -> None:
        plain = "".join(each if each.isprintable() or each == "\n" else " " for each in text)  # a site may have written it
        typer.echo(f"{job}: {plain}" if job else plain, err=level != "info")

    def follow(self, job: str, rounds: int) -> AbstractContextManager[Following]:
        return Progress(rounds, Lines(lambda text: self.say(text, job=job)))  # type: ignore[arg-type]  # a console of lines


class Lines:
    """A console for one of several jobs, as `Progress` uses it."""

    is_terminal = False

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def print(self, text: str, **_: Any) -> None:
        """One line."""
        self._say(text)


class Machines:
    """One JSON object each (`deploy.operations.logs`), on standard output."""

    def say(self, text: str, event: str = "said", level: str = "info", **fields: Any) -> None:
        logs.tell(event, text, level, **fields)

    def follow(self, job: str, rounds: int) -> AbstractContextManager[Following]:
        return nullcontext(Told(job, rounds))


class Told:
    """A sink that logs rounds, and who was lost in them. Updates are many, and are counted in metrics instead."""

    def __init__(self, job: str, rounds: int) -> None:
        self._job, self._rounds = job, rounds

    def say(self, what: str) -> None:
        """What is being done before or after the rounds."""
        logs.tell("phase", what, job=self._job)

    def going_on_from(self, done: int) -> None:
        """The run was stopped after so many rounds."""
        logs.tell("resumed", f"going on after round {done} of {self._rounds}", job=self._job, round=done, rounds=self._rounds)

    def emit(self, event: Event) -> None:
        """Log it, where it is worth a line."""
        place: dict[str, Any] = {"job": self._job, "round": event.round + 1, "work": event.work or None, "client": event.client}
        if event.kind == "round":
            logs.tell("round", f"round {event.round + 1}/{self._rounds}", rounds=self._rounds, **place)
        elif event.kind == "failure":
            kind = event.text.partition(":")[0]
            logs.tell("failure", f"client {event.client} failed: {event.text}", "warning", kind=kind, **place)
        elif event.kind == "late":
            logs.tell("late", f"an answer of client {event.client} came too late: {event.text}", "warning", **place)
        elif event.kind == "reduced":
            heard, lost = int(event.metrics.get("heard", 0)), int(event.metrics.get("lost", 0))
            told = f"{event.work}: {heard} heard, {lost} lost"
            logs.tell("reduced", told, heard=heard, lost=lost, metrics=dict(event.metrics), **place)
