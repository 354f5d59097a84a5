"""Whole runs from the command line, in processes of their own: trained, stopped, killed, resumed, reported, compared."""

from __future__ import annotations

import os
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
    assert "comparison: both.html" in atoll("compare", first, second, "--html", "both.html", cwd=here)
    page = (here / "both.html").read_text()
    assert "<html" in page
    assert first in page
    assert second in page
    assert f"report: {here / 'r.html'}" in atoll("report", first, "-o", str(here / "r.html"), cwd=here)


@pytest.mark.slow
def test_what_goes_wrong_in_a_run_is_one_sentence(here: Path) -> None:
    said = atoll("run", "job.toml", "--set", "task.model.inputs=63", cwd=here, code=2)
    assert "Traceback" not in said
    assert "--set task.model.inputs=63: [task.model] inputs = 63: must be 64" in said
    assert not (here / "runs").exists(), "nothing is kept of what could not begin"
    said = atoll("run", "job.toml", "--set", 'task={name="forecast", model={name="lstm", horizon=10}}', cwd=here, code=2)
    assert "error: [task] forecast can't read digits: " in said
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
