"""`atoll run` and `atoll resume` once the job is checked: progress while it goes, Ctrl-C, and where everything is."""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from atoll.cli.guard import Stopped
from atoll.cli.progress import Progress
from atoll.cli.runs import existing_store, store_at, write_report
from atoll.job.plan import plan
from atoll.report.facts import ratios, read
from atoll.report.units import duration, number, size

if TYPE_CHECKING:
    from rich.console import Console

    from atoll.job.execution import Outcome
    from atoll.job.schema import Job
    from atoll.job.text import Document
    from atoll.store.record import Record
    from atoll.store.run import Run
    from atoll.store.runs import Store
    from atoll.types import Event, Tree


def run_live(job: Job, document: Document, place: str | None, blobs: str | None = None) -> None:
    """A new run of a checked job."""
    name = job.name or Path(document.file).stem
    with store_at(place, blobs) as store:
        config = {**document.values, "name": name, "seed": job.seed}
        _go(job, store, store.create(name, config, job.seed, job.rounds), place)


def resume_live(which: str, place: str | None) -> None:
    """Go on with a run, from the configuration that is kept with it."""
    from atoll.job.check import check
    from atoll.job.text import Document

    with existing_store(place) as store:
        record = store.record(which)
        if record.status == "finished":
            typer.echo(f"{record.id} is finished: its {record.rounds} rounds are done; see it with: atoll report {record.id}")
            return
        job = check(Document(record.config, f"{record.id} (as kept)", {}, {}))
        _go(job, store, store.open(record.id), place)


def _go(job: Job, store: Store, run: Run, place: str | None) -> None:
    from rich.console import Console

    from atoll.job.execution import carry_out

    console = Console()
    console.print(f"run {run.id}", highlight=False)
    asked = plan(job).asked
    with run, Progress(job.rounds, console, asked) as progress, _interruptible(run.id, place) as stop:
        done = _rounds_done(store, run.id)
        if done:
            progress.going_on_from(done)
        outcome = carry_out(job, run, [progress, stop], progress.say, stop.each_round)
    record = store.record(run.id)
    _told(console, record, outcome, write_report(record))
    if store.keys or "://" in outcome.model:
        console.print(f"read the model with: atoll model {record.id} FOLDER", highlight=False, soft_wrap=True)


def _rounds_done(store: Store, id: str) -> int:
    return next((row.rounds_done for row in store.list() if row.id == id), 0)


class Stop:
    """A sink that ends the run at the next safe place, once somebody has asked: what was answered is in the journal."""

    def __init__(self, told: str) -> None:
        self.asked, self._told = False, told

    def emit(self, event: Event) -> None:
        """After each event: the update that it tells of has been accepted."""
        if self.asked:
            raise Stopped(self._told)

    def each_round(self, rounds: int, parameters: Tree) -> None:
        """After each checkpoint."""
        if self.asked:
            raise Stopped(self._told)


@contextlib.contextmanager
def _interruptible(id: str, place: str | None) -> Iterator[Stop]:
    """Ctrl-C and SIGTERM ask once for a clean stop; a second Ctrl-C stops at once."""
    where = f" --store {shlex.quote(_without_password(place))}" if place else ""
    stop = Stop(f"stopped; resume with `atoll resume {id}{where}`")

    def ask(number: int, _: Any) -> None:
        if stop.asked:
            raise Stopped(f"stopped at once; resume with `atoll resume {id}{where}`")
        stop.asked = True
        typer.echo("\nstopping when the client that is at work has answered; once more to stop at once", err=True)

    before = {each: signal.signal(each, ask) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for each, handler in before.items():  # once asked, this process only ends: one more Ctrl-C has nothing to stop
            signal.signal(each, signal.SIG_IGN if stop.asked else handler)


def _without_password(place: str) -> str:
    """What a terminal or a log may keep of a database's URL.

    >>> _without_password("postgresql+psycopg://ann:secret@host/runs"), _without_password("runs")
    ('postgresql+psycopg://ann:***@host/runs', 'runs')
    """
    return re.sub(r"(://[^:/@]*):[^/]*@", r"\1:***@", place)


def _told(console: Console, record: Record, outcome: Outcome, report: Path) -> None:
    """The end: a table of what came out, the passages, and where everything is."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "before", "after"):
        table.add_column(column)
    for name, value in outcome.result.metrics.items():
        if name in ("seconds", "examples", "steps", "heard", "lost"):
            continue
        start = record.global_series("baseline", name)
        table.add_row(name.replace("_", " "), number(start[0][1]) if start else "–", number(value))
    console.print(table)
    facts = read(record)
    sent = sum((*facts.bytes_down.values(), *facts.bytes_up.values()))
    console.print(f"{record.rounds} rounds in {duration(record.elapsed_s)}, {size(sent)} sent", highlight=False)
    if smaller := ", ".join(f"{each.times:.3g} x {each.way}" for each in ratios(facts)):
        console.print(f"smaller than without codecs: {smaller}", highlight=False)
    for when, passage in outcome.passages:
        console.print(f"{when}: {passage.strip()}", highlight=False, markup=False)
    for label, path in (("model", outcome.model), ("report", report)):
        console.print(f"{label}: {path}", highlight=False, markup=False, soft_wrap=True)
