"""`atoll serve`: the coordinator of one or several deployed jobs."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from atoll.cli.guard import Stopped, say_error
from atoll.cli.progress import Progress
from atoll.cli.runs import store_at, write_report

if TYPE_CHECKING:
    from atoll.deploy.sitelogs import SiteLogs
    from atoll.interfaces import Sink
    from atoll.job.schema import Job
    from atoll.job.text import Document
    from atoll.remote.hub import Hub
    from atoll.types import Event, Tree


class Serving(NamedTuple):
    """What all jobs of a coordinator share."""

    hub: Hub
    runs: str | None
    patience_s: float
    data: Document | Literal["none"] | None
    stop: Stop
    logs: SiteLogs


class Served(NamedTuple):
    """A checked job that is served."""

    name: str
    job: Job
    document: Document


def serve(
    jobs: Annotated[list[Path], typer.Argument(metavar="JOB...", help="Job files (TOML).", show_default=False)],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where sites connect; port 0: any free one.")] = "127.0.0.1:0",
    runs: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|URL", help="Where runs are kept. Else $ATOLL_STORE, else ./runs.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="TOML|none",
            help="A file whose [data] is held out here, or `none`; else the job's. Then [sites] names the clients.",
            show_default=False,
        ),
    ] = None,
    pki: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The authority's folder, from `atoll pki init`.", show_default=False)
    ] = None,
    insecure_loopback: Annotated[
        bool, typer.Option("--insecure-loopback", help="Without TLS, for a trial on this machine alone.")
    ] = False,
    patience_s: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="How long a round waits for sites that are not there.")
    ] = 300.0,
) -> None:
    """Coordinate jobs whose clients are at sites that `atoll join`; served again, a job goes on where it was.

    Example: `atoll serve job.toml --listen 127.0.0.1:7433 --insecure-loopback`
    """
    from atoll.deploy.look import answering
    from atoll.deploy.sitelogs import SiteLogs
    from atoll.deploy.trust import as_coordinator, who_asks
    from atoll.job.text import load
    from atoll.remote.hub import Hub
    from atoll.store import files, lock

    served = _checked(jobs)
    held: Document | Literal["none"] | None = "none" if data == "none" else load(data) if data else None
    credentials, who = as_coordinator(pki, insecure_loopback)
    with store_at(runs) as store:
        spool = files.make_folder(store.folder / "hub")  # models and updates on their way
    held_by_us = lock.Lock(spool / "lock", f"the coordinator's folder {spool}")
    logs, asked = SiteLogs(), answering(lambda: store_at(runs))
    hub = Hub(
        listen, credentials, spool, who=who, insecure=insecure_loopback, ask=asked, who_asks=who_asks(pki), heard=logs.heard
    )
    stop = Stop()
    try:
        typer.echo(f"listening on {hub.address}")
        with stop.listening():
            failed = _all(Serving(hub, runs, patience_s, held, stop, logs), served)
    finally:
        hub.stop()
        held_by_us.release()
    if stop.asked:
        raise Stopped("stopped; serve the same jobs again to go on")
    if failed:
        raise typer.Exit(1)


def _checked(paths: list[Path]) -> list[Served]:
    """Every job, checked before any begins."""
    from atoll.deploy.coordinator import refuse
    from atoll.errors import ConfigError
    from atoll.job.check import check
    from atoll.job.text import load

    found: list[Served] = []
    for path in paths:
        document = load(path)
        job = check(document)
        refuse(job)
        name = job.name or path.stem
        if name in (each.name for each in found):
            raise ConfigError(f"two of the jobs are called {name!r}; give one another name in its file")
        found.append(Served(name, job, document))
    return found


def _all(serving: Serving, served: list[Served]) -> list[str]:
    """Every job in a thread; the names of those that failed."""
    failed: list[str] = []

    def one(each: Served) -> None:
        from atoll.errors import AtollError

        try:
            _one(serving, each)
        except Stopped:
            pass
        except Exception as error:
            failed.append(each.name)
            say_error(f"{each.name}: {error if isinstance(error, AtollError | OSError) else f'{type(error).__name__}: {error}'}")

    threads = [threading.Thread(target=one, args=(each,), name=each.name, daemon=True) for each in served]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)
    return failed


def _one(serving: Serving, served: Served) -> None:
    from atoll.deploy.coordinator import coordinate, opened
    from atoll.deploy.watch import watching

    hub, place, patience_s, data, stop, logs = serving
    name, job, document = served
    lines: Any = Lines(name)
    with store_at(place) as store:
        run = opened(store, name, document.values, job)
        lines.print(f"run {run.id}")
        done = next(row.rounds_done for row in store.list() if row.id == run.id)
        watch = watching(hub, run, job, done, patience_s, logs, lines.print)
        with run, Progress(job.rounds, lines) as progress, watch:
            sinks: list[Sink] = [progress, watch, stop]
            if done:
                progress.going_on_from(done)
            outcome = coordinate(
                hub, job, document.values, run, sinks, watch.saying(progress.say), stop.each_round, stop.wait, patience_s, data
            )
        lines.print(f"model: {outcome.model}")
        lines.print(f"report: {write_report(store.record(run.id))}")


class Lines:
    """A console for one of several jobs: plain lines that begin with its name."""

    is_terminal = False

    def __init__(self, name: str) -> None:
        self._name = name

    def print(self, text: str, **_: Any) -> None:
        """One line."""
        typer.echo(f"{self._name}: {text}")


class Stop:
    """A sink that ends each job at its next safe place, once somebody has asked."""

    def __init__(self) -> None:
        self.asked = False

    def emit(self, event: Event) -> None:
        """After each event."""
        self.wait()

    def each_round(self, rounds: int, parameters: Tree) -> None:
        """After each checkpoint."""
        self.wait()

    def wait(self) -> None:
        """While nothing happens."""
        if self.asked:
            raise Stopped("stopped")

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask for a stop; the second time they do not wait for it."""

        def ask(number: int, _: Any) -> None:
            if self.asked:
                raise Stopped("stopped at once; serve the same jobs again to go on")
            self.asked = True

        before = {each: signal.signal(each, ask) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, signal.SIG_IGN if self.asked else handler)
