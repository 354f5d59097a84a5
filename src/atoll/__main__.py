"""`python -m atoll`: the command line, where the script `atoll` is not on the path."""

from __future__ import annotations

from atoll.cli.main import app

if __name__ == "__main__":
    app(prog_name="atoll")
