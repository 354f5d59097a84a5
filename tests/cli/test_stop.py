"""Ctrl-C in the middle of a round: a clean stop with nothing lost and nobody left behind, at once when asked twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

JOB = """atoll = 1
name = "stopped"
rounds = 3
[data]
name = "digits"
clients = 6
[task]
name = "classification"
[task.model]
name = "mlp"
inputs = 64
hidden = [32]
[local]
name = "sgd"
epochs = {epochs}
[algorithm]
name = "scaffold"
[engine]
name = "{engine}"
[evaluation]
every = 3
"""


def start(*words: str, cwd: Path) -> subprocess.Popen[str]:
    """In a session of its own, as a terminal has one: Ctrl-C goes to the workers too."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "atoll", *words],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "200"},
        start_new_session=True,
    )


def finished(*words: str, cwd: Path) -> str:
    process = start(*words, cwd=cwd)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return out


def reached(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for each in process.stdout:
        if each.startswith(line):
            return
    raise AssertionError(f"it ended before {line!r}")


def ended(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    assert "round 3/3" not in out
    for _ in range(100):
        with_it = subprocess.run(["ps", "-o", "pid=", "-s", str(process.pid)], capture_output=True, text=True, check=False)
        if not with_it.stdout.split():
            return err
        time.sleep(0.1)
    raise AssertionError(f"left behind: {with_it.stdout}")


def model(store: Path) -> dict[str, bytes]:
    (file,) = store.glob("*/model/model.safetensors")
    return {name: x.tobytes() for name, x in load_file(file).items()}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_ctrl_c_in_the_middle_of_a_round(tmp_path: Path, engine: str) -> None:
    (tmp_path / "job.toml").write_text(JOB.format(engine=engine, epochs=10))
    finished("run", "job.toml", "--store", "whole", cwd=tmp_path)
    process = start("run", "job.toml", "--store", "cut", cwd=tmp_path)
    reached(process, "round 1/")
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    said = ended(process)
    assert "stopping when the client that is at work has answered" in said
    assert "stopped; resume with `atoll resume stopped-" in said
    assert "interrupted" in finished("runs", "--store", "cut", cwd=tmp_path)
    assert "going on after round" in finished("resume", "last", "--store", "cut", cwd=tmp_path)
    assert model(tmp_path / "whole") == model(tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_second_ctrl_c_does_not_wait_for_a_client(tmp_path: Path, engine: str) -> None:
    (tmp_path / "job.toml").write_text(JOB.format(engine=engine, epochs=100_000))
    process = start("run", "job.toml", cwd=tmp_path)
    reached(process, "before training")
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    said = ended(process)
    assert time.monotonic() - began < 30  # a client's work takes hours
    assert "stopped at once; resume with `atoll resume stopped-" in said


def test_a_stop_shows_no_password() -> None:
    from atoll.cli.live import _without_password

    assert _without_password("postgresql+psycopg://ann:se@cret@host/runs?x=1") == "postgresql+psycopg://ann:***@host/runs?x=1"
    assert _without_password("postgresql+psycopg://ann@/runs?host=/tmp") == "postgresql+psycopg://ann@/runs?host=/tmp"
