"""`atoll catalog`: every name that a job file may use."""

from __future__ import annotations

from typing import Annotated

import typer


def catalog(
    what: Annotated[
        str | None, typer.Argument(metavar="[KIND|NAME]", help="A kind, such as `algorithm`, or a name, such as `fedavg`.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/catalog.md.")] = False,
) -> None:
    """List every name that a job file may use, or one kind, or one name with its parameters.

    Examples: `atoll catalog`, `atoll catalog algorithm`, `atoll catalog fedavg`
    """
    from atoll import catalog as found
    from atoll.errors import unknown

    if markdown:
        typer.echo(found.markdown(), nl=False)
    elif what is None:
        for kind in found.KINDS:
            _list(kind)
    elif what in found.KINDS:
        _list(what)
    else:
        entries = found.named(what)
        if not entries:
            every = {entry.name for kind in found.KINDS for entry in found.entries(kind)}
            raise unknown("kind or factory", what, [*found.KINDS, *every])
        for entry in entries:
            _show(entry)


def _list(kind: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from atoll import catalog as found

    rows = found.entries(kind)
    if not rows:
        return
    table = Table(
        title=kind.replace("_", " "), title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
    )
    table.add_column(style="cyan", no_wrap=True, min_width=18)
    table.add_column()
    for row in rows:
        table.add_row(row.name, row.summary.replace("[", "\\["))
    Console().print(table, "")


def _show(entry: object) -> None:
    from atoll.catalog import Entry
    from atoll.job.check import WIRED, settable

    assert isinstance(entry, Entry)
    typer.echo(f"{entry.name} ({entry.kind.replace('_', ' ')}, {entry.module})\n  {entry.summary}")
    known = {parameter.name for parameter in settable(entry)}
    for parameter in entry.parameters:
        wired = parameter.name in WIRED.get(entry.kind, ()) and parameter.required
        how = (
            "filled in from the job"
            if wired
            else "in Python only"
            if parameter.name not in known
            else "required"
            if parameter.required
            else f"= {parameter.shown}"
        )
        typer.echo(f"    {parameter.name}: {parameter.annotation}  {how}")
    for key, value in entry.about.items():
        typer.echo(f"  {key}: {value}")
