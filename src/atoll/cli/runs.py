"""`atoll runs | compare | report`: what was run, side by side, and as a page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from atoll.store.record import Record
    from atoll.store.runs import Store

RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, the beginning of it, or `last`.", show_default=False)]
Place = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="FOLDER|URL", help="Where runs are kept. Else $ATOLL_STORE, else ./runs.", show_default=False
    ),
]


def store_at(place: str | None, blobs: str | None = None) -> Store:
    """The store at a folder, or with the database at a URL (its files are then in ./runs).

    New runs keep checkpoints and models at `blobs`, else at $ATOLL_BLOBS, else in their folders.
    """
    from atoll.store.runs import Store

    where = _where(place)
    blobs = blobs or os.environ.get("ATOLL_BLOBS") or None
    return Store("runs", where, blobs=blobs) if "://" in where else Store(where, blobs=blobs)


def existing_store(place: str | None) -> Store:
    """The same for reading: a folder that is not there is not made.

    Raises UnknownName where it isn't.
    """
    from atoll.errors import UnknownName

    where = _where(place)
    if "://" not in where and not Path(where).exists():
        raise UnknownName(
            f"there are no runs in {where}, which is no folder; start one with `atoll run`, or name it with --store"
        )
    return store_at(place)


def _where(place: str | None) -> str:
    return place or os.environ.get("ATOLL_STORE") or "runs"


def runs(store: Place = None) -> None:
    """List the runs, the newest first.

    Example: `atoll runs --store /data/runs`
    """
    from rich.console import Console
    from rich.table import Table

    if "://" not in _where(store) and not Path(_where(store)).exists():
        typer.echo(f"no runs in {Path(_where(store)).absolute()} yet; start one with: atoll run JOB")
        return
    with store_at(store) as opened:
        rows = opened.list()
        folder = opened.folder
    if not rows:
        typer.echo(f"no runs in {folder} yet; start one with: atoll run JOB")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "status", "rounds", "seed", "made", "what went wrong"):
        table.add_column(column, no_wrap=column == "run")
    colours = {"finished": "green", "failed": "red", "interrupted": "yellow"}
    for row in rows:
        status = f"[{colours.get(row.status, 'default')}]{row.status}[/]"
        table.add_row(
            row.id,
            status,
            f"{row.rounds_done}/{row.rounds}",
            str(row.seed),
            row.created[:16].replace("T", " "),
            row.error.replace("[", "\\["),
        )
    Console().print(table)


def compare(
    run: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Two or more runs.", show_default=False)],
    store: Place = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write them as one page, with plots.")] = None,
) -> None:
    """Set runs side by side: how each ended, and the settings in which they differ.

    Examples: `atoll compare fashion-20260101-7k2m fashion-20260101-8z00`, `atoll compare slow fast --html both.html`
    """
    from rich.console import Console
    from rich.table import Table

    from atoll.errors import ConfigError

    if len(run) < 2:
        raise ConfigError("compare takes two runs or more; `atoll runs` lists them.")
    with existing_store(store) as opened:
        records = [opened.record(each) for each in run]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for record in records:
        table.add_column(record.id)
    for label, values in _side_by_side(records):
        table.add_row(label, *(value.replace("[", "\\[") for value in values))
    Console().print(table)
    if html is not None:
        from atoll.report.comparison import render_comparison

        typer.echo(f"comparison: {_written(html, render_comparison(records))}")


def report(
    run: RunId,
    store: Place = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to; else report.html in the run's folder.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write a run's report: one self-contained HTML file.

    Examples: `atoll report last --open`, `atoll report fashion-20260101-7k2m -o report.html`
    """
    with existing_store(store) as opened:
        record = opened.record(run)
    path = write_report(record, output)
    typer.echo(f"report: {path}")
    if open_:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


def model(
    run: RunId,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to.", show_default=False)],
    store: Place = None,
) -> None:
    """Write a run's trained model to a folder, fetched from where its blobs are and opened where it is sealed.

    Examples: `atoll model last trained`, `atoll model fashion-20260101-7k2m /data/trained`
    """
    with existing_store(store) as at:
        found = at.open(run)
        try:
            found.fetch_model(folder)
        finally:
            found.close()
    typer.echo(f"model: {folder}")


def write_report(record: Record, output: Path | None = None) -> Path:
    """The report of a run, by default in its folder; returns where it is."""
    from atoll.report.page import render

    return _written(output or Path(record.folder) / "report.html", render(record))


def _written(path: Path, page: str) -> Path:
    """Raises StoreError where it can't be."""
    from atoll.errors import StoreError

    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{path} can't be written: {error.strerror or error}; name another file") from error
    return path


def _side_by_side(records: list[Record]) -> list[tuple[str, list[str]]]:
    """Rows of a comparison: the state, then the last of each global number, then the settings that differ."""
    from atoll.report.units import duration, number

    rows = [
        ("status", [record.status for record in records]),
        ("rounds", [str(record.rounds) for record in records]),
        ("time", [duration(record.elapsed_s) for record in records]),
    ]
    for work, name in sorted({pair for record in records for pair in record.names(clients=False)}):
        series = [record.global_series(work, name) for record in records]
        rows.append((f"{work} {name}".strip(), [number(each[-1][1]) if each else "–" for each in series]))
    settings = [flat(record.config) for record in records]
    for key in sorted({key for each in settings for key in each}):
        values = [each.get(key, "–") for each in settings]
        if len(set(values)) > 1:
            rows.append((key, values))
    return rows


def flat(config: object, at: str = "") -> dict[str, str]:
    """A configuration with dotted keys, as `--set` spells them.

    >>> flat({"local": {"lr": 0.1}, "transforms": [{"name": "clip"}]})
    {'local.lr': '0.1', 'transforms.0.name': 'clip'}
    """
    if isinstance(config, dict):
        pairs = config.items()
    elif isinstance(config, list):
        pairs = dict(enumerate(config)).items()
    else:
        return {at: str(config)}
    return {key: value for name, inner in pairs for key, value in flat(inner, f"{at}.{name}".lstrip(".")).items()}
