"""How a command ends badly: one or two lines on standard error and an exit code, never a traceback.

Exit codes: 2 a setting or a file is wrong, 1 anything else went wrong, 130 stopped with Ctrl-C, 143 with SIGTERM.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from atoll.deploy.operations import logs
from atoll.errors import AtollError, ConfigError, JobError, MissingExtra, VersionError

DEBUG = "ATOLL_DEBUG"  # set to 1 to see the traceback of what is a defect


USAGE: tuple[type[Exception], ...] = tuple(
    each for each in typer.BadParameter.__mro__ if each.__name__ in ("UsageError", "ClickException")
)


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after the checkpoint of what is done."""

    def __init__(self, text: str, code: int = 130) -> None:
        super().__init__(text)
        self.code = code


class Guarded(TyperGroup):
    """The group of all commands, with the endings above."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn what it raises into a sentence and a code."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # whoever read what we print has gone, as `head` does; typer ends quietly
        except Stopped as stopped:
            say_error(str(stopped), label="")
            raise typer.Exit(stopped.code) from None
        except JobError as error:
            for problem in error.problems:
                say_error(problem)
            raise typer.Exit(2) from None
        except (ConfigError, VersionError, MissingExtra) as error:
            say_error(str(error))
            raise typer.Exit(2) from None
        except (AtollError, OSError) as error:
            say_error(_os(error) if isinstance(error, OSError) and not isinstance(error, AtollError) else str(error))
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            say_error("stopped", label="")
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort):
            raise
        except USAGE:
            raise  # typer's own: an exit, or a wrong word of the command line, which it prints itself
        except Exception as error:
            if os.environ.get(DEBUG) == "1":
                traceback.print_exc()
            else:
                say_error(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
                typer.echo(f"This is a defect of Atoll; the traceback is in {_log()}", err=True)
            raise typer.Exit(1) from None


def say_error(text: str, label: str = "error: ") -> None:
    """One message on standard error, its label in red on a terminal; a log where the process writes one."""
    if logs.begun():
        logs.tell("error" if label else "stopped", text, "error" if label else "info")
        return
    typer.echo(typer.style(label, fg="red", bold=True) + text if label else text, err=True)


def _os(error: OSError) -> str:
    name = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{name}"


def _log() -> str:
    with tempfile.NamedTemporaryFile("w", prefix="atoll-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(f"{' '.join(sys.argv)}\n")
        traceback.print_exc(file=file)
    return file.name
