"""The comparison with peers: its medians and verdicts, its watch over processes, and Atoll's own row in one tiny run."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import one of the scripts' modules as they import each other: by its bare name."""
    monkeypatch.syspath_prepend(PEERS.parent)
    monkeypatch.syspath_prepend(PEERS)
    before = set(sys.modules)

    def loaded(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield loaded
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(PEERS.parent)):
            del sys.modules[name]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four clients of 20 images each, whose class is which of ten bright rows they have."""
    torch.manual_seed(0)

    def images(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.randint(10, shape)
        x = 0.1 * torch.randn(*shape, 1, 28, 28)
        x += 3.0 * torch.nn.functional.one_hot(y, 28).float()[..., None, :, None]
        return x, y

    (x, y), (test_x, test_y) = images(4, 20), images(50)
    path = tmp_path / "images.safetensors"
    save_file({"x": x, "y": y, "test_x": test_x, "test_y": test_y}, path)
    return path


def test_a_row_is_the_median_of_runs_and_a_run_the_median_of_rounds(load: Any) -> None:
    table = load("table")
    runs = [
        table.Run("w1-mlp", "atoll-serial", 4.0, 3.0, (1.0, 9.0, 2.0), 100.0, 0.8),  # its rounds' median: 2
        table.Run("w1-mlp", "atoll-serial", 3.0, 2.5, (5.0, 6.0), 400.0, 0.7),  # 5.5
        table.Run("w1-mlp", "atoll-serial", 9.0, 3.0, (3.0,), 200.0, 0.9),  # 3
        table.Run("w1-mlp", "flower", problem="not installed"),
    ]
    ours, flower = table.medians(runs)
    assert ours == table.Row("w1-mlp", "atoll-serial", 3, 3.0, 4.0, 1.0, 200.0, 0.8, "")
    assert flower == table.Row("w1-mlp", "flower", 0, None, None, None, None, None, "1 of 1: not installed")
    shown = table.text(table.cells([ours, flower]))
    assert "not installed" in shown.splitlines()[-1]  # a peer that is missing is named, with the reason


def test_a_verdict_compares_the_fastest_rows(load: Any) -> None:
    table = load("table")

    def row(system: str, round_s: float, peak_mb: float, accuracy: float) -> Any:
        return table.Row("w1-mlp", system, 3, round_s, 3.0, 0.5, peak_mb, accuracy, "")

    rows = [
        row("atoll-serial", 0.2, 300.0, 0.80),
        row("atoll-processes", 0.1, 500.0, 0.81),
        row("flower", 0.5, 1600.0, 0.79),
        row("pfl-1-process", 0.35, 400.0, 0.80),
        row("pfl-2-processes", 0.29, 600.0, 0.80),
        row("fedjax", 0.31, 370.0, 0.70),
    ]
    found = {v["target"]: v[""] for v in table.verdicts(rows)}
    assert found == {
        "w1-mlp: 5x flower": "met",  # 0.5 / 0.1
        "w1-mlp: 3x pfl": "missed",  # 0.29 / 0.1, though one process would do
        "w1-mlp: 3x fedjax": "met",
        "w1-mlp: 20x nvflare": "not measured",
        "w1-mlp: first round within 1 s beyond importing torch": "met",
        "w1-mlp: peak memory at most pfl's, of the fastest row of each": "met",
        "w1-mlp: accuracies within 0.05 of each other": "missed",
    }


def alive(pid: int) -> bool:
    """False for who has ended, waited for or not."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(shown) and not shown.startswith("Z")


def test_nobody_is_left_behind(load: Any, tmp_path: Path) -> None:
    """A child that left the session and outlives its parent is found by what it inherited, and ended."""
    watch = load("watch")
    child = "import time; hold = bytearray(40_000_000); hold[::4096] = b'x' * len(hold[::4096]); time.sleep(60)"
    parent = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        "print(child.pid, flush=True); time.sleep(1.5)"
    )
    ended = watch.watch([sys.executable, "-c", parent], os.environ, tmp_path, timeout_s=30)
    assert ended.code == 0
    assert not alive(int(ended.last_lines))
    assert ended.peak_bytes > 40_000_000 or not Path("/proc").is_dir()


def test_a_process_that_takes_too_long_is_ended(load: Any, tmp_path: Path) -> None:
    began = time.monotonic()
    ended = load("watch").watch([sys.executable, "-c", "import time; time.sleep(60)"], os.environ, tmp_path, timeout_s=0.5)
    assert ended.code is None
    assert time.monotonic() - began < 30


def test_the_file_is_read_without_its_library(load: Any, data: Path) -> None:
    from safetensors.torch import load_file

    read = load("workload").read(data)
    for name, tensor in load_file(data).items():
        assert torch.equal(torch.from_numpy(getattr(read, name)), tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["serial-eager", "processes-eager"])
def test_our_own_row(data: Path, tmp_path: Path, variant: str) -> None:
    out = tmp_path / "said.json"
    command = [sys.executable, str(PEERS / "ours.py"), "--workload=tiny", "--rounds=3", f"--data={data}", f"--out={out}"]
    done = subprocess.run([*command, f"--variant={variant}", f"--began={time.monotonic()}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(out.read_text())
    assert 0 < said["import_s"] < said["first_round_s"]
    assert len(said["round_s"]) == 2  # the first is counted with the start
    assert said["accuracy"] > 0.5  # of ten classes


def test_who_ends_without_a_word_has_failed(load: Any, data: Path) -> None:
    run = load("run")
    silent = run.System("silent", "workload.py", "")  # imports, defines, ends with 0
    ended = run.measure(silent, "tiny", 1, data, Path(sys.executable), 60.0)
    assert ended.problem.startswith("said nothing")
    broken = run.measure(run.System("broken", "nowhere.py", ""), "tiny", 1, data, Path(sys.executable), 60.0)
    assert broken.problem.startswith("ended with 2: ")
    assert "nowhere.py" in broken.problem.splitlines()[0]  # what the table shows


@pytest.mark.slow
def test_the_runner_names_who_cannot_run(
    data: Path, tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Beside our row, a peer that cannot be installed: in the table with pip's words, and the rest goes on."""
    run, environments, results = load("run"), load("environments"), load("results")
    monkeypatch.setenv("ATOLL_PEERS", str(tmp_path / "cache"))
    monkeypatch.setattr(results, "OUT", tmp_path / "out")
    monkeypatch.setattr(environments, "environment", lambda peer, folder: environments.Environment(None, "no such version"))
    given = ["--only=atoll-serial,flower", "--ours=eager", "--workloads=tiny", "--rounds=2", "--repeats=1", f"--data={data}"]
    monkeypatch.setattr(sys, "argv", ["run.py", *given])
    run.main()
    shown = capsys.readouterr().out
    assert "flower on tiny: 1 of 1: not installed: no such version" in shown
    rows = {row["system"]: row for row in json.loads((tmp_path / "out" / "peers-tiny.json").read_text())["rows"]}
    assert rows["atoll-serial-eager"]["runs"] == 1
    assert rows["flower"]["runs"] == 0
