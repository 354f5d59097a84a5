"""`atoll data`: who holds what, before any training, and data sets in files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from atoll.job.text import Document

app = typer.Typer(no_args_is_help=True, help="Look at data sets, as a federation would hold them, and write them to files.")


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

    dataset = dataset_of(_document(name, set_ or []))
    import atoll.data.show as shown

    typer.echo(shown.table(dataset))
    if plot is not None:
        shown.plot(dataset, plot)
        typer.echo(f"plot: {plot}")


@app.command()
def pack(
    name: Annotated[str, typer.Argument(metavar="NAME|JOB", help="A data set of the catalog, or a job file.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to write, such as plays.safetensors.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the data set; may be repeated.")
    ] = None,
) -> None:
    """Write a data set to one file that any number of processes map at once; of a job, as its task reads it (texts as tokens).

    A job reads it with `[data] name = "mapped"` and `path`. Example: `atoll data pack shakespeare.toml plays.safetensors`
    """
    from atoll.job.build import data_of, dataset_of
    from atoll.job.check import check

    document = _document(name, set_ or [])
    dataset = data_of(check(document)) if "task" in document.values else dataset_of(document)
    import atoll.data.packed as packed

    written = packed.pack(dataset, file)
    typer.echo(f"{written}: {len(dataset.clients):,} clients, {written.stat().st_size / 1e6:,.1f} MB")


def _document(name: str, sets: list[str]) -> Document:
    """A job file, or one that has no more than this data set."""
    from atoll.job.text import load, parse

    if name.endswith(".toml"):
        return load(name, sets)
    return parse("", name, [f'data.name="{name}"', *(f"data.{each}" for each in sets)])
