"""`atoll new | check | run | resume`: from a job file to a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from atoll.job.text import Document

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="A job file (TOML).", show_default=False)]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the job file, such as local.lr=0.1; may be repeated.",
        show_default=False,
    ),
]
Place = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="FOLDER|URL",
        help="Where runs are kept: a folder, or a database URL. Else $ATOLL_STORE, else ./runs.",
        show_default=False,
    ),
]


Blobs = Annotated[
    str | None,
    typer.Option(
        "--blobs",
        metavar="FOLDER|URL",
        help="Where checkpoints and the model are kept, such as s3://bucket/runs. Else $ATOLL_BLOBS, else the run's folder.",
        show_default=False,
    ),
]


def new(
    name: Annotated[str, typer.Argument(help="What to call the job; NAME.toml is written.", show_default=False)],
    template: Annotated[str, typer.Option("--template", "-t", help="What to begin with: an example by name.")] = "fashion",
) -> None:
    """Write a commented job file that passes `atoll check`.

    Examples: `atoll new first`, `atoll new hamlet --template shakespeare`
    """
    from atoll.errors import ConfigError
    from atoll.job import templates

    text = templates.named(template, Path(name).stem)
    path = Path(name) if name.endswith(".toml") else Path(f"{name}.toml")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{path} exists already; choose another name, or delete it first.") from None
    typer.echo(f"{path} written; next: atoll check {path}, atoll run {path}")


def check(job: JobFile, set_: Sets = None) -> None:
    """Say what a job will do, without running it: every problem with its line, or what is trained and what it sends.

    Examples: `atoll check job.toml`, `atoll check job.toml --set algorithm.name=scaffold`
    """
    from rich.console import Console
    from rich.table import Table

    from atoll.job.check import check as checked
    from atoll.job.plan import rows

    document = _load(job, set_)
    found = checked(document)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for label, text in rows(found):
        table.add_row(label, text.replace("[", "\\["))
    Console().print(table)
    typer.echo(f"{document.file}: nothing wrong; run it with: atoll run {job}")


def run(job: JobFile, set_: Sets = None, store: Place = None, blobs: Blobs = None) -> None:
    """Run a job, showing its progress; Ctrl-C stops after a checkpoint, and `atoll resume` goes on from there.

    Examples: `atoll run job.toml`, `atoll run job.toml --set rounds=20 --set local.lr=0.05 --store /data/runs`
    """
    from atoll.cli.live import run_live
    from atoll.job.check import check as checked

    document = _load(job, set_)
    run_live(checked(document), document, store, blobs)


def resume(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run's id, as `atoll runs` shows it, or the beginning of it.", show_default=False),
    ],
    store: Place = None,
) -> None:
    """Go on with a run that was stopped or killed; it ends in the same bits as if it never had been.

    Example: `atoll resume fashion-3`
    """
    from atoll.cli.live import resume_live

    resume_live(run, store)


def _load(job: Path, sets: list[str] | None) -> Document:
    from atoll.job.text import load

    return load(job, sets or [])
