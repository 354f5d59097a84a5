"""`atoll serve`: the coordinator of one or several deployed jobs."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from atoll.cli.drain import SAFE_S, Drain
from atoll.cli.guard import Stopped, say_error
from atoll.cli.operation import Operation, operating
from atoll.cli.runs import store_at, write_report
from atoll.cli.voice import DrainS, Format, LogFormat, OpsAt, voice_of

if TYPE_CHECKING:
    from atoll.deploy.operations.sitelogs import SiteLogs
    from atoll.deploy.refusals import Refusals
    from atoll.interfaces import Sink
    from atoll.job.schema import Job
    from atoll.job.text import Document
    from atoll.remote.hub import Hub


class Serving(NamedTuple):
    """What all jobs of a coordinator share."""

    hub: Hub
    runs: str | None
    patience_s: float
    start_with: int | None
    data: Document | Literal["none"] | None
    operation: Operation
    logs: SiteLogs
    refusals: Refusals


class Served(NamedTuple):
    """A checked job that is served."""

    name: str
    job: Job
    document: Document
    signature: bytes  # of what it says; b"": nobody has signed it


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
    enrol: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Also give certificates here, as `atoll pki listen` does; best the next port.",
            show_default=False,
        ),
    ] = None,
    insecure_loopback: Annotated[
        bool, typer.Option("--insecure-loopback", help="Without TLS, for a trial on this machine alone.")
    ] = False,
    patience_s: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="How long a round waits for sites that are not there.")
    ] = 300.0,
    start_with: Annotated[
        int | None,
        typer.Option(
            metavar="SITES",
            min=1,
            help="Begin each job when so many of its sites are there, and not before; else with all who come in that time.",
            show_default=False,
        ),
    ] = None,
    ops: OpsAt = None,
    log_format: LogFormat = Format.text,
    drain_s: DrainS = 30.0,
) -> None:
    """Coordinate jobs whose clients are at sites that `atoll join`; served again, a job goes on where it was.

    Example: `atoll serve job.toml --listen 127.0.0.1:7433 --insecure-loopback`
    """
    from atoll.deploy.coordinator import sweep
    from atoll.deploy.enrol import giving
    from atoll.deploy.operations.look import answering
    from atoll.deploy.operations.sitelogs import SiteLogs
    from atoll.deploy.refusals import refusals_in
    from atoll.deploy.rotation import kept_by_coordinator, renewing
    from atoll.deploy.trust import as_coordinator, who_asks
    from atoll.job.text import load
    from atoll.remote.hub import Hub
    from atoll.store import files, lock

    voice, drain = voice_of(log_format), Drain(drain_s, "serve the same jobs again to go on", late_s=SAFE_S)
    served = _checked(jobs)
    held: Document | Literal["none"] | None = "none" if data == "none" else load(data) if data else None
    credentials, who = as_coordinator(pki, insecure_loopback)
    with store_at(runs) as store:
        spool = files.make_folder(store.folder / "hub")  # models and updates on their way
    held_by_us = lock.Lock(spool / "lock", f"the coordinator's folder {spool}")
    logs, asked = SiteLogs(), renewing(pki, answering(lambda: store_at(runs)))
    refusals = refusals_in(spool)
    hub = Hub(
        listen,
        credentials,
        spool,
        who=who,
        insecure=insecure_loopback,
        ask=asked,
        who_asks=who_asks(pki),
        heard=logs.heard,
        refused=refusals.note,
    )
    names, say = [each.name for each in served], voice.say
    try:
        with store_at(runs) as store:
            sweep(hub, store)
        say(f"listening on {hub.address}", "listening", address=hub.address)
        with (
            operating(hub, spool, names, voice, drain, ops) as operation,
            kept_by_coordinator(hub, pki, say),
            giving(pki, enrol, say),
        ):
            failed, stopped = _all(Serving(hub, runs, patience_s, start_with, held, operation, logs, refusals), served)
    finally:
        hub.stop()
        refusals.close()
        held_by_us.release()
    if stopped:
        raise drain.stopped()
    if failed:
        raise typer.Exit(1)


def _checked(paths: list[Path]) -> list[Served]:
    """Every job, checked before any begins."""
    from atoll.deploy.coordinator import refuse
    from atoll.deploy.rules.judge import text_of
    from atoll.deploy.rules.signatures import kept_signature
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
        found.append(Served(name, job, document, kept_signature(path, text_of(document.values))))
    return found


def _all(serving: Serving, served: list[Served]) -> tuple[list[str], list[str]]:
    """Every job in a thread; the names of those that failed, and of those that were stopped."""
    failed, stopped = list[str](), list[str]()

    def one(each: Served) -> None:
        from atoll.errors import AtollError

        try:
            _one(serving, each)
        except Stopped:
            stopped.append(each.name)
        except Exception as error:
            failed.append(each.name)
            say_error(f"{each.name}: {error if isinstance(error, AtollError | OSError) else f'{type(error).__name__}: {error}'}")
        finally:
            serving.operation.ends(each.name)

    threads = [threading.Thread(target=one, args=(each,), name=each.name, daemon=True) for each in served]
    for thread in threads:
        thread.start()
    serving.operation.wait_for(threads)
    return failed, stopped


def _one(serving: Serving, served: Served) -> None:
    from atoll.deploy.coordinator import coordinate, opened
    from atoll.deploy.operations.watch import watching

    hub, place, patience_s, start_with, data, operation, logs, refusals = serving
    name, job, document, signature = served
    say = functools.partial(operation.voice.say, job=name)
    with store_at(place) as store:
        run = opened(store, name, document.values, job)
        say(f"run {run.id}", "run", run=run.id)
        done = next(row.rounds_done for row in store.list() if row.id == run.id)
        watch = watching(hub, run, job, done, patience_s, logs, say, start_with)
        stop, mine = operation.begins(name, run.id, done, job.rounds)
        with run, operation.voice.follow(name, job.rounds) as progress, watch:
            sinks: list[Sink] = [progress, watch, refusals.sink(run.id), *mine]
            if done:
                progress.going_on_from(done)
            telling, values = watch.saying(progress.say), document.values
            outcome = coordinate(
                hub, job, values, run, sinks, telling, stop.each_round, stop.wait, patience_s, data, signature, start_with
            )
        say(f"model: {outcome.model}", "model", model=outcome.model)
        say(f"report: {write_report(store.record(run.id))}", "report")
