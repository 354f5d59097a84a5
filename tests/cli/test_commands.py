"""What the commands print and how they end, in a process of its own where that matters."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from atoll import __version__
from atoll.cli.main import app
from atoll.job import templates

ATOLL = [sys.executable, "-c", "import sys; sys.argv[0] = 'atoll'; from atoll.cli.main import app; app()"]


def say(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, list(words))


def process(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ATOLL, *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", **environment},
        check=False,
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_version_and_help() -> None:
    assert say("version").output == f"atoll {__version__}\n"
    assert say("--version").output == f"atoll {__version__}\n"
    every = say("--help").output
    for command in ("new", "check", "run", "resume", "runs", "compare", "report", "catalog", "data", "version"):
        assert re.search(rf"\b{command}\b", every)


@pytest.mark.parametrize("command", ["new", "check", "run", "resume", "runs", "compare", "report", "model", "catalog", "version"])
def test_help_teaches_by_example(command: str) -> None:
    assert f"atoll {command}" in say(command, "--help").output.split("Options")[0].split("Example", 1)[1]


@pytest.mark.parametrize("template", templates.names())
def test_what_new_writes_passes_check(template: str, here: Path) -> None:
    written = say("new", "mine", "--template", template)
    assert written.exit_code == 0, written.output
    assert 'name = "mine"' in (here / "mine.toml").read_text()
    checked = say("check", "mine.toml")
    assert checked.exit_code == 0, checked.output
    assert "from each client" in checked.output
    again = say("new", "mine", "--template", template)
    assert (again.exit_code, "exists already" in again.output) == (2, True)


def test_check_says_what_crosses_the_network(here: Path) -> None:
    say("new", "first")
    # conv 1->8 and 8->16 of 3x3, a dense layer 16*7*7 -> 64, an output of 10: counted by hand
    parameters = (8 * 9 + 8) + (16 * 8 * 9 + 16) + (784 * 64 + 64) + (64 * 10 + 10)
    output = say("check", "first.toml").output
    assert f"{parameters:,} parameters trained" in output
    assert f"{parameters * 4 / 1000:.3g} kB" in output
    doubled = say("check", "first.toml", "--set", "algorithm.name=scaffold", "--set", "local.momentum=0.0").output
    assert f"{parameters * 8 / 1000:.3g} kB a round (2 x the trained parameters in fp32)" in doubled
    halved = say("check", "first.toml", "--set", 'transforms=[{name="cast"}]').output
    assert f"from each client  {parameters * 2 / 1000:.3g} kB" in halved


def test_check_prints_every_problem_on_standard_error(here: Path) -> None:
    (here / "bad.toml").write_text("atoll = 1\nrounds = 0\n[local]\nname = 'sgdd'\n")
    done = say("check", "bad.toml")
    assert done.exit_code == 2
    assert "error: bad.toml:2: rounds = 0: must be 1 or more" in done.stderr
    assert "error: bad.toml:4: [local] no local is called 'sgdd'; did you mean 'sgd'?" in done.stderr
    assert "Traceback" not in done.output


def test_files_that_are_not_there_or_newer(here: Path) -> None:
    done = say("check", "nothing.toml")
    assert (done.exit_code, done.stderr) == (2, "error: can't read the job file nothing.toml: No such file or directory.\n")
    (here / "newer.toml").write_text("atoll = 9\n")
    newer = say("check", "newer.toml")
    assert (newer.exit_code, "upgrade Atoll" in newer.stderr) == (2, True)


def test_catalog_by_kind_and_by_name() -> None:
    assert "fedavg" in say("catalog").output
    assert "fedavg" not in say("catalog", "partition").output
    assert re.search(r"lr: float\s+= 0.1", say("catalog", "sgd").output)
    wrong = say("catalog", "fedavgg")
    assert (wrong.exit_code, "did you mean 'fedavg'" in wrong.stderr) == (2, True)


def test_an_unexpected_error_is_two_lines_and_a_log(here: Path) -> None:
    program = (
        "import sys, atoll.job.text\n"
        "def broken(*_): raise ZeroDivisionError('a defect')\n"
        "atoll.job.text.load = broken\n"
        "sys.argv = ['atoll', 'check', 'x.toml']\n"
        "from atoll.cli.main import app; app()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    first, second = done.stderr.splitlines()
    assert (done.returncode, first) == (1, "error: ZeroDivisionError: a defect")
    log = Path(second.rpartition(" ")[2])
    assert "Traceback" in log.read_text()
    log.unlink()
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env={**os.environ, "ATOLL_DEBUG": "1"}
    )
    assert "Traceback" in shown.stderr


def test_runs_of_an_empty_store(here: Path) -> None:
    assert "no runs in" in say("runs").output
    done = say("report", "nothing")
    assert (done.exit_code, "there are no runs" in done.stderr) == (2, True)


@pytest.mark.slow
def test_help_and_check_start_fast(here: Path) -> None:
    """CPU-seconds of the whole process, the best of three: other processes do not count."""
    say("new", "first")

    def best(*words: str) -> float:
        taken = []
        for _ in range(3):
            before = os.times()
            assert process(*words, cwd=here).returncode == 0
            after = os.times()
            taken.append(after.children_user + after.children_system - before.children_user - before.children_system)
        return min(taken)

    assert best("--help") < 0.3
    assert best("check", "first.toml") < 1.5
    assert time.monotonic() > 0
