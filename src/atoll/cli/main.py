"""`atoll`: the commands, and how to begin."""

from __future__ import annotations

from typing import Annotated

import typer

import atoll
from atoll.cli import audit, data, job, jobs, join, names, pki, relay, runs, serve, site, status
from atoll.cli.guard import Guarded

app = typer.Typer(
    cls=Guarded,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,  # rich and markdown cost twice what the rest of `atoll --help` does
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    help="""Train and fine-tune models across data that may not move.

    A first run, from nothing to a report:

        atoll new first --template fashion

        atoll check first.toml

        atoll run first.toml
    """,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"atoll {atoll.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Nothing to do here: the options above act by themselves."""


for command in (jobs.new, jobs.check, jobs.run, jobs.resume, runs.runs, runs.compare, runs.report, runs.model, names.catalog):
    app.command()(command)
app.command()(serve.serve)
app.command()(join.join)
app.command()(relay.relay)
app.command()(status.status)
app.command()(status.why)
app.add_typer(data.app, name="data")
app.add_typer(job.app, name="job")
app.add_typer(pki.app, name="pki")
app.add_typer(site.app, name="site")
app.add_typer(audit.app, name="audit")


@app.command()
def version(
    every: Annotated[bool, typer.Option("--all", help="Also Python and the packages that a run depends on.")] = False,
) -> None:
    """Print the version.

    Example: `atoll version --all`
    """
    typer.echo(f"atoll {atoll.__version__}")
    if every:
        import importlib.metadata
        import platform

        typer.echo(f"python {platform.python_version()}")
        for package in ("torch", "numpy", "safetensors", "transformers", "peft", "SQLAlchemy"):
            try:
                typer.echo(f"{package} {importlib.metadata.version(package)}")
            except importlib.metadata.PackageNotFoundError:
                typer.echo(f"{package} is not installed")
