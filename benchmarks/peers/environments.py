"""A virtual environment for each peer, made once and kept in a cache folder: peers' pins meet neither ours nor each other's."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

INSTALL_TIMEOUT_S = 1800.0
KEPT_LINES = 12  # of pip's last words when it fails
TORCH = "torch==2.13.0"

# In this order, one pip call each: torch first, so that no peer's requirement chooses another build of it.
REQUIREMENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "flower": ((TORCH, "numpy"), ("flwr[simulation]==1.41.0", "ray==2.55.1")),
    "pfl": ((TORCH, "numpy"), ("pfl==0.6.0",)),
    "nvflare": ((TORCH, "numpy"), ("nvflare==2.9.0",)),
    "fedjax": (("numpy==1.26.4", "jax==0.4.30", "jaxlib==0.4.30"), ("fedjax==0.0.17", "dm-haiku==0.0.12", "optax==0.2.3")),
}


class Environment(NamedTuple):
    """The interpreter that runs a peer, or why there is none."""

    python: Path | None
    problem: str = ""  # pip's last lines


def cache() -> Path:
    """ATOLL_PEERS, or a folder in the user's cache."""
    if place := os.environ.get("ATOLL_PEERS"):
        return Path(place).expanduser().resolve()
    from platformdirs import user_cache_path

    return user_cache_path("atoll") / "peers"


def environment(peer: str, folder: Path) -> Environment:
    """The environment of `peer` in `folder`: what is there if it was made from these very requirements, else made anew."""
    wanted = REQUIREMENTS[peer]
    place = folder / peer
    stamp, python = place / "installed", place / "bin" / "python"
    fingerprint = hashlib.sha256(repr((wanted, sys.version_info[:2])).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == fingerprint and python.exists():
        return Environment(python)
    _say(f"{peer}: making its environment in {place} (minutes, the first time)")
    try:
        venv.create(place, clear=True, with_pip=True, symlinks=True)
    except (OSError, subprocess.CalledProcessError) as error:  # no room, no ensurepip
        return Environment(None, f"no environment could be made in {place}: {error}")
    pinned = place / "constraints.txt"
    pinned.write_text("\n".join(r for step in wanted for r in step if "==" in r and "[" not in r) + "\n")
    for step in wanted:
        problem = _install(python, peer, step, pinned)
        if problem:
            return Environment(None, problem)
    stamp.write_text(fingerprint)
    return Environment(python)


def _install(python: Path, peer: str, packages: Sequence[str], constraints: Path) -> str:
    """Install, showing what pip is at; its last lines where it fails, else nothing."""
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        "-c",
        str(constraints),
        *packages,
    ]
    lines = list[str]()
    _say(f"{peer}: pip install {' '.join(packages)}")
    with (
        constraints.with_name("pip.log").open("a") as kept,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as pip,
    ):
        ending = threading.Timer(INSTALL_TIMEOUT_S, pip.kill)
        ending.start()
        assert pip.stdout is not None
        for line in pip.stdout:
            kept.write(line)
            lines = [*lines[-KEPT_LINES + 1 :], line.rstrip()]
            if line.lstrip().startswith(("Downloading", "Installing collected")) and ".metadata" not in line:
                _say(f"{peer}:   {line.strip()[:110]}")
        pip.wait()
        ending.cancel()
    if pip.returncode == 0:
        return ""
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:]
    why = f"not done within {INSTALL_TIMEOUT_S:.0f} s" if pip.returncode < 0 else "".join(errors[:1])
    return f"pip ended with {pip.returncode}: {why}\n" + "\n".join(lines)


def _say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)
