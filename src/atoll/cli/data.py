"""`atoll data`: who holds what, before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Look at data sets, as a federation would hold them.")


@app.callback()
def group() -> None:
    """Look at data sets, as a federation would hold them."""


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|JOB", help="A data set of the catalog, or a job file.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the data set; may be repeated.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw who holds what, as PNG or SVG.")] = None,
) -> None:
    """Fetch a data set and show how much each client holds, and of what.

    Examples: `atoll data show fashion_mnist --set partition=shards --plot who.png`, `atoll data show job.toml`
    """
    from atoll.job.build import dataset_of
    from atoll.job.text import load, parse

    sets = set_ or []
    if name.endswith(".toml"):
        document = load(name, sets)
    else:
        document = parse("", name, [f'data.name="{name}"', *(f"data.{each}" for each in sets)])
    dataset = dataset_of(document)
    import atoll.data.show as shown

    typer.echo(shown.table(dataset))
    if plot is not None:
        shown.plot(dataset, plot)
        typer.echo(f"plot: {plot}")
