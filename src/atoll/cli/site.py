"""`atoll site`: what a site was asked to take part in, its consent, and its policy."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from atoll.deploy.rules.approvals import Decision

app = typer.Typer(no_args_is_help=True, help="Say what this site takes part in: its consent to jobs, and its policy.")
policy_app = typer.Typer(no_args_is_help=True, help="Look at site policies.")
app.add_typer(policy_app, name="policy")

Folder = Annotated[
    Path,
    typer.Option("--folder", metavar="FOLDER", envvar="ATOLL_SITE", help="The site's folder, as `atoll join` has it."),
]
JobName = Annotated[
    str, typer.Argument(metavar="JOB", help="A job by its name, its SHA-256, or the beginning of that.", show_default=False)
]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="The reason, for the log and for who denied jobs are told to.")]
By = Annotated[str, typer.Option("--by", metavar="NAME", help="Who decides. Else the user of this machine.", show_default=False)]


@app.callback()
def group() -> None:
    """Say what this site takes part in: its consent to jobs, and its policy."""


@app.command()
def jobs(folder: Folder = Path(".")) -> None:
    """List the jobs that this site was asked to take part in, and what was decided.

    Example: `atoll site jobs --folder north`
    """
    from rich.console import Console
    from rich.table import Table

    from atoll.deploy.rules.approvals import Consents

    consents = Consents(folder)
    known = consents.all()
    if not known:
        typer.echo(f"nobody has asked the site in {folder.absolute()} to take part in a job yet")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("job", "SHA-256", "status", "by", "asked", "what the policy says"):
        table.add_column(column, no_wrap=column == "SHA-256")
    for each in known:
        asked, said = each.asked[:16].replace("T", " "), "; ".join(each.refusals) or "nothing against it"
        table.add_row(*(x.replace("[", "\\[") for x in (each.name, each.key[:12], each.status, each.by, asked, said)))
    Console().print(table)
    typer.echo(f"what each job says: {consents.folder}/SHA-256/job.json")


@app.command()
def approve(job: JobName, folder: Folder = Path("."), by: By = "", why: Why = "") -> None:
    """Consent to a job, as it stands: one that is changed by a single value asks again.

    Examples: `atoll site approve hearts --folder north`, `atoll site approve 4f0c2a --by anna`
    """
    _decide(folder, job, "approved", by, why)


@app.command()
def deny(job: JobName, folder: Folder = Path("."), by: By = "", why: Why = "") -> None:
    """Refuse a job, or withdraw a consent: from its next assignment on, nothing more is computed.

    Example: `atoll site deny hearts --folder north --why "no consent for 2019"`
    """
    _decide(folder, job, "denied", by, why)


def _decide(folder: Path, job: str, decision: Decision, by: str, why: str) -> None:
    """The log before the decision: a consent that takes effect is in it."""
    from atoll.deploy.rules.approvals import Consents
    from atoll.deploy.rules.gate import log_of

    consents, by = Consents(folder), by or getpass.getuser()
    meant = consents.find(job)
    log_of(folder).append(decision, job=meant.name, digest=meant.digest, bundle=meant.bundle_digest, by=by, why=why)
    consents.decide(meant.key, decision, by, why)
    typer.echo(f"{meant.name} ({meant.key[:12]}) is {decision}, by {by}")
    for refusal in meant.refusals if decision == "approved" else ():
        typer.echo(f"but the policy said, when it was last asked: {refusal}", err=True)


@app.command()
def digest(job: Annotated[Path, typer.Argument(metavar="JOB", help="A job file (TOML).", show_default=False)]) -> None:
    """Print the SHA-256 of what a job says, by which policies and consents know it; comments and spaces don't count.

    Example: `atoll site digest job.toml`
    """
    import hashlib

    from atoll.deploy.rules.judge import text_of
    from atoll.job.check import check
    from atoll.job.text import load

    document = load(job)
    check(document)
    typer.echo(hashlib.sha256(text_of(document.values).encode()).hexdigest())


@policy_app.callback()
def policies() -> None:
    """Look at site policies."""


@policy_app.command("check")
def check_policy(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A site policy (TOML).", show_default=False)],
    job: Annotated[
        Path | None, typer.Option("--job", metavar="JOB", help="Also say what it says of a job file.", show_default=False)
    ] = None,
) -> None:
    """Say in plain sentences what a policy means, or every problem with its line; with `--job`, what it says of a job.

    Examples: `atoll site policy check policy.toml`, `atoll site policy check policy.toml --job job.toml`
    """
    from atoll.deploy.rules.explain import sentences
    from atoll.deploy.rules.policy import load_policy

    policy = load_policy(file)
    if job is None:
        for sentence in sentences(policy):
            typer.echo(sentence)
        return
    from atoll.deploy.rules.judge import Offer, judge, text_of
    from atoll.deploy.rules.signatures import kept_signature
    from atoll.errors import JobError
    from atoll.job.check import check
    from atoll.job.text import load

    document = load(job)
    signature = kept_signature(job, text_of(document.values))
    refusals = judge(policy, Offer(check(document), document.values, run=job.stem, signature=signature))
    if refusals:
        raise JobError(str(each) for each in refusals)
    typer.echo(f"{job}: the policy has nothing against it, by what the job file says")
