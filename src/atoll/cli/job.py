"""`atoll job`: vouch for what a job file says, by a signature that sites check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Sign job files, for sites that take part in signed jobs only.")


@app.callback()
def group() -> None:
    """Sign job files, for sites that take part in signed jobs only."""


@app.command()
def key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file, which only you can read.", show_default=False)],
) -> None:
    """Make a key to sign jobs with, and print its public half, for the policies of sites.

    Example: `atoll job key me.key`
    """
    _needed()
    from atoll.deploy.rules.signatures import make_key

    typer.echo(make_key(file))


@app.command()
def sign(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A job file (TOML).", show_default=False)],
    key: Annotated[
        Path, typer.Option("--key", metavar="FILE", help="Your key, from `atoll job key`: Ed25519, PEM.", show_default=False)
    ],
) -> None:
    """Sign what a job file says, into JOB.sig beside it, which `atoll serve` sends to the sites; comments and spaces don't count.

    Example: `atoll job sign job.toml --key me.key`
    """
    _needed()
    from atoll.deploy.rules.judge import text_of
    from atoll.deploy.rules.signatures import keep_signature, load_key, public_text
    from atoll.job.check import check
    from atoll.job.text import load

    document = load(job)
    check(document)
    signer = load_key(key)
    typer.echo(f"{keep_signature(signer, job, text_of(document.values))}: signed by {public_text(signer)}")


def _needed() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        from atoll.errors import missing_extra

        raise missing_extra("cryptography", "net", "signatures") from None
