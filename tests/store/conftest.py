"""A private PostgreSQL cluster, started for the session."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def binary(name: str) -> str | None:
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    return str(versions[-1]) if versions else shutil.which(name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a fresh cluster that listens on a socket of its own, run by somebody other than root."""
    initdb, pg_ctl = binary("initdb"), binary("pg_ctl")
    if not (initdb and pg_ctl):
        pytest.skip("POSTGRESQL IS NOT TESTED: initdb and pg_ctl are not installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="POSTGRESQL IS NOT TESTED: pip install 'atoll[postgres]'")
    # Not tmp_path: a socket's path has at most 107 bytes, and nobody but root may enter root's.
    folder = Path(tempfile.mkdtemp(prefix="atoll-pg-", dir="/tmp"))
    user = None
    if os.geteuid() == 0:
        user = "postgres" if any(entry.pw_name == "postgres" for entry in pwd.getpwall()) else "nobody"
        shutil.chown(folder, user)

    def run(*command: str) -> None:
        done = subprocess.run(
            command, user=user, cwd=folder, capture_output=True, text=True, env={"LC_ALL": "C.UTF-8"}, timeout=120
        )
        log = (folder / "log").read_text() if (folder / "log").exists() else ""
        assert done.returncode == 0, f"{done.stdout}{done.stderr}{log}"

    try:
        run(initdb, "-D", str(folder / "data"), "-U", "atoll", "-A", "trust", "-E", "UTF8", "--no-sync")
        listen = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        run(pg_ctl, "-D", str(folder / "data"), "-l", str(folder / "log"), "-o", listen, "-w", "start")
        yield f"postgresql+psycopg://atoll@/postgres?host={folder}"
        run(pg_ctl, "-D", str(folder / "data"), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
