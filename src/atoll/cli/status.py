"""`atoll status | why`: what deployed jobs are at, site by site, and what a job waits for."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from atoll.cli.runs import Place, existing_store

if TYPE_CHECKING:
    from rich.table import Table

    from atoll.deploy.operations.status import Status

LOG_LINES = 20  # of each site
REDRAW_S = 1.0

JobName = Annotated[
    str, typer.Argument(metavar="JOB", help="A job's name, a run's id or the beginning of it, or `last`.", show_default=False)
]
MaybeJob = Annotated[
    str | None,
    typer.Argument(metavar="[JOB]", help="A job's name, or a run's id; else the newest that were served.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]
Logs = Annotated[bool, typer.Option("--logs", help="Also the last lines that sites have let the coordinator see of their logs.")]
Coordinator = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Ask a coordinator on another machine, where sites connect.", show_default=False),
]
Identity = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Who asks: a key and certificate, from `atoll pki enrol`.", show_default=False),
]
Insecure = Annotated[bool, typer.Option("--insecure-loopback", help="Ask a coordinator on this machine without TLS.")]


class Where(NamedTuple):
    """Where to look."""

    store: str | None
    coordinator: str | None
    identity: Path | None
    insecure: bool


def status(
    job: MaybeJob = None,
    store: Place = None,
    json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Draw it again, once a second, until the job ends.")] = False,
    logs: Logs = False,
    coordinator: Coordinator = None,
    identity: Identity = None,
    insecure_loopback: Insecure = False,
) -> None:
    """Say what a deployed job is at: the round, and what each client at each site does.

    Examples: `atoll status`, `atoll status trial --watch`,
    `atoll status trial --coordinator coordinator.trial.example:7433 --identity me`
    """
    where = Where(store, coordinator, identity, insecure_loopback)
    if watch:
        _watch(where, job, logs)
    else:
        _show(_found(where, job, logs), job is not None, json)


def why(
    job: JobName,
    store: Place = None,
    json: Json = False,
    logs: Logs = False,
    coordinator: Coordinator = None,
    identity: Identity = None,
    insecure_loopback: Insecure = False,
) -> None:
    """Say what a job waits for now, worst first, or how it ended: which site, which client, which round, why, and what to do.

    Examples: `atoll why trial`, `atoll why last --logs`
    """
    from atoll.deploy.operations.why import headline, reasons

    (found,) = _found(Where(store, coordinator, identity, insecure_loopback), job, logs)
    if json:
        _json({"headline": headline(found), "reasons": reasons(found), "logs": [each._asdict() for each in found.logs]})
        return
    typer.echo(headline(found))
    for each in reasons(found):
        typer.echo(f"- {each}")
    _logs(found)


def _found(where: Where, job: str | None, logs: bool) -> list[Status]:
    """What is known, from this machine's folder of runs or from a coordinator."""
    from atoll.deploy.operations import look

    lines = LOG_LINES if logs else 0
    if where.coordinator is None:
        with existing_store(where.store) as opened:
            return look.look(opened, job, lines)
    from atoll.deploy.trust import as_site
    from atoll.remote.asking import ask

    credentials, name = as_site(where.identity, None, where.insecure)
    body, insecure = look.question_of(job, lines), where.insecure
    return look.answer_of(ask(where.coordinator, credentials, look.QUESTION, body, insecure=insecure, name=name or ""))


def _show(found: list[Status], one: bool, as_json: bool) -> None:
    """Once: a table on a terminal, plain lines elsewhere."""
    from rich.console import Console

    if as_json:
        from atoll.deploy.operations.status import to_json

        typer.echo(to_json(found[0] if one else found))
    elif not found:
        typer.echo("no job has been served yet; begin one with: atoll serve JOB")
    elif Console().is_terminal:
        Console().print(_page(found[0]) if one else _overview(found))
    elif one:
        _lines(found[0])
    else:
        from atoll.deploy.operations.why import headline, reasons

        for each in found:
            typer.echo(f"{headline(each)}\n- {reasons(each)[0]}")
    for each in found if one and not as_json else ():
        _logs(each)


def _watch(where: Where, job: str | None, logs: bool) -> None:
    """Again and again, until no run is running."""
    from rich.console import Console
    from rich.live import Live

    console, said = Console(), ""
    with Live(console=console, auto_refresh=False) if console.is_terminal else contextlib.nullcontext() as drawn:
        while True:
            found = _found(where, job, logs)
            if drawn is not None:
                drawn.update(_page(found[0]) if job is not None and found else _overview(found), refresh=True)
            else:
                said = _again(found, said)
            if not any(each.state == "running" for each in found):
                break
            time.sleep(REDRAW_S)


def _again(found: list[Status], said: str) -> str:
    """Plain lines, where they are others than those before."""
    from atoll.deploy.operations.why import headline, reasons

    told = "\n".join(line for each in found for line in (headline(each), *(f"- {text}" for text in reasons(each))))
    if told != said:
        typer.echo(told)
    return told


def _overview(found: list[Status]) -> Table:
    """A line a run."""
    from rich.table import Table

    from atoll.deploy.operations.why import reasons

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "state", "rounds", "sites there", "what it waits for, or how it ended"):
        table.add_column(column, no_wrap=column == "run")
    for each in found:
        sites = each.live.sites if each.live is not None and each.state == "running" else ()
        there = f"{sum(site.online for site in sites)} of {len(sites)}" if sites else "–"
        table.add_row(
            each.run, _coloured(each.state), f"{each.rounds_done}/{each.rounds}", there, reasons(each)[0].replace("[", "\\[")
        )
    return table


def _page(found: Status) -> Table:
    """A run: where it is, a line a client, and what it waits for."""
    from rich.table import Table

    from atoll.deploy.operations.why import headline, reasons

    page = Table(box=None, pad_edge=False, show_header=False)
    page.add_column()
    page.add_row(headline(found).replace("[", "\\["))
    rows = _rows(found)
    if rows:
        clients = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for column in ("site", "client", "round", "what it does"):
            clients.add_column(column)
        for row in rows:
            clients.add_row(*(cell.replace("[", "\\[") for cell in row))
        page.add_row("")
        page.add_row(clients)
    page.add_row("")
    for each in reasons(found):
        page.add_row(f"- {each}".replace("[", "\\["))
    return page


def _rows(found: Status) -> list[tuple[str, str, str, str]]:
    """Site, client, round, what it does."""
    from atoll.deploy.operations.why import doing

    if found.live is None or found.state != "running":
        return []
    live = found.live
    sites, ordered = {each.site: each for each in live.sites}, sorted(live.clients, key=lambda each: (each.site, each.client))
    return [
        (
            each.site,
            each.client,
            "–" if each.round is None else str(each.round + 1),
            doing(each, sites.get(each.site), live, found.now),
        )
        for each in ordered
    ]


def _lines(found: Status) -> None:
    from atoll.deploy.operations.why import headline, reasons

    typer.echo(headline(found))
    for site, client, round, does in _rows(found):
        where = f", round {round}" if round != "–" else ""
        typer.echo(f"{site}, {client}{where}: {does}")
    for each in reasons(found):
        typer.echo(f"- {each}")


def _logs(found: Status) -> None:
    """What sites have sent, a line each."""
    from atoll.deploy.operations.why import clock

    for each in found.logs:
        typer.echo(f"{clock(each.at, found.now)} {each.site}: {each.line}")


def _coloured(state: str) -> str:
    colours = {"finished": "green", "failed": "red", "interrupted": "yellow"}
    return f"[{colours.get(state, 'default')}]{state}[/]"


def _json(value: object) -> None:
    import json

    typer.echo(json.dumps(value, ensure_ascii=False))
