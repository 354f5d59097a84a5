"""`atoll audit`: what left a site, and whether the log that says so is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Read a site's audit log, and find out whether it is whole.")

Log = Annotated[Path, typer.Argument(metavar="FILE", help="An audit log, such as north/audit.jsonl.", show_default=False)]
_SKIPPED = ("seq", "time", "event", "before", "hash")
_WIDE = ("first", "sha256", "codecs")


@app.callback()
def group() -> None:
    """Read a site's audit log, and find out whether it is whole."""


@app.command()
def verify(
    log: Log,
    head: Annotated[
        list[Path] | None,
        typer.Option("--head", metavar="FILE", help="A head that was kept elsewhere; may be repeated.", show_default=False),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="KEY", help="The site's public key, in base64; may be repeated.", show_default=False),
    ] = None,
) -> None:
    """Find every line that was changed, removed, inserted, moved or cut off; the exit code is 1 where there is one.

    Examples: `atoll audit verify north/audit.jsonl`, `atoll audit verify north/audit.jsonl --head kept.json --key "$KEY"`
    """
    from atoll.cli.guard import say_error
    from atoll.deploy import verify as lines
    from atoll.deploy.audit import read_head
    from atoll.deploy.rules.signatures import refuse_key
    from atoll.errors import UnknownName

    for each in key or ():
        refuse_key(each)
    heads = []
    for path in head or ():
        found = read_head(path)
        if found is None:
            raise UnknownName(f"there is no head at {path}; `atoll audit head FILE` prints one to be kept")
        heads.append(found)
    verdict = lines.verify(log, heads, key or ())
    for note in verdict.notes:
        typer.echo(f"note: {note}")
    for finding in verdict.findings:
        say_error(f"{log.name}{f':{finding.line}' if finding.line else ''}: {finding.text}", label="")
    if verdict.findings:
        say_error(f"{log}: {len(verdict.findings)} findings in {verdict.records} records; keep the file as it is")
        raise typer.Exit(1)
    typer.echo(f"{log}: {verdict.records} records, each following the one before it")


@app.command()
def show(
    log: Log,
    job: Annotated[str | None, typer.Option(metavar="NAME", help="Only of this job.", show_default=False)] = None,
    event: Annotated[
        str | None, typer.Option(metavar="EVENT", help="Only of this kind, such as left or refused.", show_default=False)
    ] = None,
    wide: Annotated[bool, typer.Option("--wide", help="Also the first tensors, codecs and digests.")] = False,
) -> None:
    """List the records: what left, when, to whom, how many bytes; what came, was refused, approved or denied.

    Examples: `atoll audit show north/audit.jsonl`, `atoll audit show north/audit.jsonl --event left --job hearts`
    """
    from atoll.deploy import verify as lines

    bytes_left = 0
    for record in lines.records(log):
        if (job is None or record.get("job") == job) and (event is None or record["event"] == event):
            bytes_left += record["bytes"] if record["event"] == "left" else 0
            told = [
                f"{key}={_shown(value)}" for key, value in record.items() if key not in _SKIPPED and (wide or key not in _WIDE)
            ]
            typer.echo(f"{record['seq']:>6} {record['time'][:19]} {record['event']:<9} {' '.join(told)}")
    typer.echo(f"{bytes_left} bytes left the site in these records")


@app.command()
def head(log: Log) -> None:
    """Print the head of a log, for an auditor to keep: against it, a log that was cut short or written anew is found.

    Example: `atoll audit head north/audit.jsonl > kept.json`
    """
    from atoll.deploy.audit import head_path, read_head
    from atoll.deploy.verify import head_text
    from atoll.errors import UnknownName

    found = read_head(head_path(log))
    if found is None:
        raise UnknownName(f"there is no {head_path(log)}: {log} is no audit log, or its head was taken away")
    typer.echo(head_text(found))


@app.command()
def key(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The site's folder.", show_default=False)],
) -> None:
    """Make the key with which a site signs its log from now on, and print the public half, for auditors.

    Example: `atoll audit key north`
    """
    from atoll.deploy.rules.gate import KEY
    from atoll.deploy.rules.signatures import make_key

    folder.mkdir(parents=True, exist_ok=True)
    typer.echo(make_key(folder / KEY))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + "; ".join(map(str, value)) + "]"
    return repr(value) if isinstance(value, str) and (" " in value or not value) else str(value)
