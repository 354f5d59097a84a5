"""The units of systemd: systemd itself accepts them, and they keep what they promise."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "systemd"
UNITS = ["atoll-coordinator.service", "atoll-site@.service"]
analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here: the units are not verified")


def settings(unit: str) -> dict[str, list[str]]:
    """Name -> its values, in their order."""
    found: dict[str, list[str]] = {}
    for line in (FOLDER / unit).read_text().splitlines():
        if match := re.fullmatch(r"([A-Za-z]+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def installed(unit: str, folder: Path) -> Path:
    """The unit as it would be, but for the program, which is one that exists here."""
    path = folder / unit
    path.write_text((FOLDER / unit).read_text().replace("/opt/atoll/bin/atoll", sys.executable))
    return path


@analyze
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_accepts_it(unit: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", "--man=no", str(installed(unit, tmp_path))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert unit not in done.stderr, done.stderr  # it warns of what it does not know, and passes over it


@analyze
@pytest.mark.parametrize("unit", UNITS)
def test_it_is_exposed_little(unit: str, tmp_path: Path) -> None:
    """Of ten, where 0 is a service that may do nothing; the network is what these are for."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", str(installed(unit, tmp_path))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("unit", UNITS)
def test_it_keeps_its_promises(unit: str) -> None:
    found = settings(unit)
    for name, value in {
        "User": "atoll",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "PrivateTmp": "yes",
        "KillSignal": "SIGTERM",
        "SuccessExitStatus": "143",
        "Restart": "on-failure",
        "RestartPreventExitStatus": "2",
        "UMask": "0077",
        "StateDirectoryMode": "0700",
    }.items():
        assert found[name] == [value], name
    assert found["StateDirectory"][0].startswith("atoll")
    (start,) = found["ExecStart"]
    (drain_s,) = re.findall(r"--drain-s (\d+)", start)
    assert int(found["TimeoutStopSec"][0]) >= int(drain_s) + 15
    assert "--insecure" not in start
    assert "MemoryDenyWriteExecute" not in found  # torch could not start
