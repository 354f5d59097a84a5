"""A run as it goes: a live line on a terminal, one plain line a round elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from atoll.report.units import duration, number, size

if TYPE_CHECKING:
    from rich.console import Console

    from atoll.types import Event

SHOWN = ("baseline", "evaluate")  # works whose means are the model's quality
JUDGING = (*SHOWN, "evaluate_clients", "global", "finetune", "personal")  # works that do not train the global model

REDRAW_S = 0.1


class Progress:
    """A sink that shows rounds, clients, loss, time to go and bytes. It owns the terminal's last line: use it in a `with`."""

    def __init__(self, rounds: int, console: Console, asked: int | None = None) -> None:
        self._rounds, self._console, self._asked = rounds, console, asked
        self._done, self._first = 0, 0
        self._began = self._after_first = time.monotonic()
        self._heard, self._lost, self._bytes = set[str](), 0, 0.0
        self._quality: dict[str, float] = {}
        self._bar: Any = None
        self._drawn = 0.0
        self._task: Any = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[told]}")
            # Drawn when something happens and not by a thread of its own: an engine is about to fork this process.
            self._bar = Bar(*columns, console=self._console, auto_refresh=False)
            self._task = self._bar.add_task("starting", total=self._rounds, told="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, what: str) -> None:
        """What is being done before or after the rounds."""
        self._began = time.monotonic()  # reading the data says nothing of the pace of rounds
        if self._bar is not None:
            self._bar.update(self._task, description=what, refresh=True)
        else:
            self._print(what)

    def going_on_from(self, done: int) -> None:
        """The run was stopped after so many rounds."""
        self._done = self._first = done
        self._print(f"going on after round {done} of {self._rounds}")

    def emit(self, event: Event) -> None:
        """Show what changed."""
        if event.kind == "update":
            if event.work not in SHOWN:  # the server judges those itself
                self._bytes += event.metrics.get("bytes_up", 0.0) + event.metrics.get("bytes_down", 0.0)
            if event.work not in JUDGING and event.client is not None:
                self._heard.add(event.client)
        elif event.kind == "failure":
            self._lost += 1
            self._print(f"round {event.round + 1}: client {event.client} failed: {event.text}")
        elif event.kind == "reduced" and (event.work in SHOWN or not self._quality):
            costs = ("seconds", "examples", "steps", "heard", "lost", "clipped", "age")
            found = {name: value for name, value in event.metrics.items() if name not in costs}
            self._quality = found if event.work in SHOWN else {f"training {name}": value for name, value in found.items()}
            if event.work == "baseline":
                self._print(f"before training: {self._qualities()}")
        elif event.kind == "round":
            self._done = event.round + 1
            if self._bar is None:
                self._print(f"round {self._done}/{self._rounds}  {self._told()}")
            self._heard, self._lost = set(), 0
            if self._done == self._first + 1:
                self._after_first = time.monotonic()
        if self._bar is not None:
            often = time.monotonic() - self._drawn < REDRAW_S and event.kind != "round"
            self._bar.update(self._task, completed=self._done, description=self._where(), told=self._told(), refresh=not often)
            self._drawn = self._drawn if often else time.monotonic()

    def _where(self) -> str:
        return f"round {min(self._done + 1, self._rounds)}/{self._rounds}"

    def _told(self) -> str:
        asked = f"/{self._asked}" if self._asked else ""
        clients = f"{len(self._heard)}{asked} clients" + (f", {self._lost} lost" if self._lost else "")
        parts = [clients, self._qualities(), size(self._bytes), self._to_go()]
        return "  ".join(part for part in parts if part)

    def _qualities(self) -> str:
        return "  ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in self._quality.items())

    def _to_go(self) -> str:
        """From the pace of the rounds after the first, which pays for what is loaded once."""
        rounds = self._done - self._first
        if rounds < 1 or self._done == self._rounds:
            return ""
        now = time.monotonic()
        pace = (now - self._after_first) / (rounds - 1) if rounds > 1 else now - self._began
        return f"{duration(pace * (self._rounds - self._done))} to go"

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
