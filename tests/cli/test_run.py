"""Whole runs from the command line, in processes of their own: trained, stopped, killed, resumed, reported, compared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

ATOLL = [sys.executable, "-c", "import sys; sys.argv[0] = 'atoll'; from atoll.cli.main import app; app()"]
JOB = """atoll = 1
name = "digits"
rounds = 3
[data]
name = "digits"
clients = 4
[task]
name = "classification"
[task.model]
name = "mlp"
inputs = 64
hidden = [16]
[local]
name = "sgd"
lr = 0.1
[algorithm]
name = "fedavg"
[[transforms]]
name = "cast"
[evaluation]
per_client = true
"""


def start(*words: str, cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.Popen(
        [*ATOLL, *words], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, bufsize=1
    )


def atoll(*words: str, cwd: Path, code: int = 0) -> str:
    process = start(*words, cwd=cwd)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    return out + err


def model(folder: Path) -> dict[str, bytes]:
    return {name: x.tobytes() for name, x in load_file(folder / "model" / "model.safetensors").items()}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path


@pytest.mark.slow
def test_run_report_and_compare(here: Path) -> None:
    said = atoll("run", "job.toml", cwd=here)
    assert "before training: loss" in said
    assert "round 3/3  4/4 clients  loss" in said
    (folder,) = (path for path in (here / "runs").iterdir() if path.is_dir())
    assert f"model: {folder / 'model'}" in said
    assert f"report: {folder / 'report.html'}" in said
    assert set(load_file(folder / "model" / "model.safetensors")) == {
        "hidden1.weight",
        "hidden1.bias",
        "output.weight",
        "output.bias",
    }
    assert (folder / "report.html").read_text().startswith("<!doctype html>"[:9]) or "<html" in (
        folder / "report.html"
    ).read_text()
    assert "finished" in atoll("runs", cwd=here)
    assert "is finished" in atoll("resume", "last", cwd=here)

    other = atoll("run", "job.toml", "--set", "local.lr=0.01", "--set", "name=slow", "--store", "elsewhere", cwd=here)
    assert "run slow-" in other
    atoll("run", "job.toml", "--set", "local.lr=0.01", cwd=here)
    first, second = sorted(path.name for path in (here / "runs").iterdir() if path.is_dir())
    compared = atoll("compare", first, second, cwd=here)
    assert "local.lr" in compared
    assert "0.01" in compared
    assert "algorithm.name" not in compared, "only the settings that differ are shown"
    assert f"report: {here / 'r.html'}" in atoll("report", first, "-o", str(here / "r.html"), cwd=here)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_goes_on_to_the_same_bits(here: Path, how: signal.Signals) -> None:
    sets = ["--set", "rounds=40", "--set", "local.epochs=2"]
    atoll("run", "job.toml", *sets, "--store", "whole", cwd=here)
    process = start("run", "job.toml", *sets, "--store", "cut", cwd=here)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("round 5/"):
            break
    process.send_signal(how)
    out, err = process.communicate(timeout=120)
    if how == signal.SIGINT:
        assert process.returncode == 130, out + err
        assert "stopped; resume with `atoll resume digits-" in err
        assert "round 40/40" not in out
    listed = atoll("runs", "--store", "cut", cwd=here)
    assert "interrupted" in listed
    resumed = atoll("resume", "digits", "--store", "cut", cwd=here)
    assert "going on after round" in resumed
    (whole,) = (path for path in (here / "whole").iterdir() if path.is_dir())
    (cut,) = (path for path in (here / "cut").iterdir() if path.is_dir())
    assert model(whole) == model(cut)


@pytest.mark.slow
def test_what_goes_wrong_in_a_run_is_one_sentence(here: Path) -> None:
    said = atoll("run", "job.toml", "--set", "task.model.inputs=63", cwd=here, code=2)
    assert "Traceback" not in said
    assert "error: [task] classification can't read digits: " in said
    assert "failed" in atoll("runs", cwd=here)
    many = atoll("run", "job.toml", "--set", "data.clients=9999", cwd=here, code=2)
    assert "error: [data" in many
    (here / "locked").mkdir()
    (here / "locked" / "runs").write_text("a file where a folder should be")
    place = atoll("run", "job.toml", "--store", "locked/runs", cwd=here, code=1)
    assert "error: " in place
    assert "Traceback" not in place


def test_data_show(here: Path) -> None:
    began = time.monotonic()
    shown = atoll(
        "data",
        "show",
        "digits",
        "--set",
        "clients=3",
        "--set",
        "partition=dirichlet",
        "--set",
        "partition.alpha=1",
        cwd=here,
        code=2,
    )
    assert "partition" in shown
    shown = atoll("data", "show", "digits", "--set", "clients=3", cwd=here)
    assert "client-2" in shown
    assert time.monotonic() > began
    assert "no dataset is called 'digit'; did you mean 'digits'?" in atoll("data", "show", "digit", cwd=here, code=2)
