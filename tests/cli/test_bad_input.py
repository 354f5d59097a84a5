"""Bad input through the command line: one or two sentences on standard error, the right exit code, no traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

JOB = """atoll = 1
name = "bad"
rounds = 2
[data]
name = "digits"
clients = 4
[task]
name = "classification"
[task.model]
name = "mlp"
inputs = 64
hidden = [4]
[local]
name = "sgd"
lr = 0.1
[algorithm]
name = "fedavg"
"""
SITES = JOB.replace('name = "digits"\nclients = 4', 'name = "folder"\npath = "sites"').replace("inputs = 64", "inputs = 3")


def atoll(*words: str, cwd: Path, code: int, before: str = "") -> str:
    """What the command says on standard error, when it ends with this exit code."""
    program = f"{before}\nimport sys; sys.argv[0] = 'atoll'; from atoll.cli.main import app; app()"
    environment = {**os.environ, "COLUMNS": "300"}
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "defect" not in done.stderr
    return done.stderr


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path


def test_wrong_words_are_usage(here: Path) -> None:
    assert "No such command 'rnu'. Did you mean 'run'?" in atoll("rnu", cwd=here, code=2)
    assert "Missing argument 'JOB'" in atoll("check", cwd=here, code=2)
    assert "No such option: --sett" in atoll("run", "job.toml", "--sett", "a=1", cwd=here, code=2)
    assert "compare takes two runs or more" in atoll("compare", "one", cwd=here, code=2)


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_file_that_is_no_job(here: Path, command: str) -> None:
    (here / "garbled.toml").write_text("atoll = 1\n[data\n")
    assert "error: garbled.toml:2: not valid TOML: expected ']'" in atoll(command, "garbled.toml", cwd=here, code=2)
    (here / "noise.toml").write_bytes(bytes(range(256)))
    assert "noise.toml is not a text file in UTF-8" in atoll(command, "noise.toml", cwd=here, code=2)
    (here / "newer.toml").write_text("atoll = 7\n[future]\n")
    assert "newer.toml:1: the job file is of format 7, and this Atoll reads up to 1: upgrade" in atoll(
        command, "newer.toml", cwd=here, code=2
    )
    assert "can't read the job file ..: Is a directory" in atoll(command, "..", cwd=here, code=2)
    assert not (here / "runs").exists(), "a job that can't be read leaves nothing behind"


def test_a_run_that_is_not_there(here: Path) -> None:
    for command in ("resume", "report"):
        assert "there are no runs in runs" in atoll(command, "none", cwd=here, code=2)
    assert not (here / "runs").exists(), "asking makes no folder"


@pytest.mark.slow
@pytest.mark.fetch
def test_an_extra_that_only_the_reading_asks_for_is_named_before_training(here: Path) -> None:
    before = HIDDEN.format(names={"pandas"})
    said = atoll("run", "job.toml", "--set", 'data="credit"', "--set", "task.model.inputs=25", cwd=here, code=2, before=before)
    assert "'pandas': pip install 'atoll[data]'" in said


HIDDEN = """
import sys, importlib.abc
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Hidden())
import importlib.util, importlib.metadata
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.partition(".")[0] in {names!r} else real(name, *rest)
found = importlib.metadata.Distribution.discover
importlib.metadata.Distribution.discover = lambda **how: iter(()) if how.get("name") in {names!r} else found(**how)
"""


@pytest.mark.parametrize(
    ("sets", "names", "line", "says"),
    [
        ([], {"sklearn", "scikit-learn"}, "job.toml:5", "pip install 'atoll[data]'"),
        (["sinks.mlflow.experiment=x"], {"mlflow"}, "--set sinks", "needs the package 'mlflow': pip install 'atoll[mlflow]'"),
        (["sinks.tensorboard.folder=x"], {"tensorboard"}, "--set sinks", "pip install 'atoll[tensorboard]'"),
        (["engine=ray"], {"ray"}, "--set engine=ray", "[engine] ray needs the package 'ray': pip install 'atoll[ray]'"),
        (["task=causal_lm"], {"transformers"}, "--set task=causal_lm", "'transformers': pip install 'atoll[llm]'"),
        (['task={name="causal_lm", adapter={rank=2}}'], {"peft"}, "--set task", "'peft': pip install 'atoll[llm]'"),
        (['data={name="table", path="job.toml", label="y"}'], {"pandas"}, "--set data", "'pandas': pip install 'atoll[data]'"),
    ],
)
def test_a_missing_extra_is_named_with_its_line(here: Path, sets: list[str], names: set[str], line: str, says: str) -> None:
    flags = [word for each in sets for word in ("--set", each)]
    said = atoll("check", "job.toml", *flags, cwd=here, code=2, before=HIDDEN.format(names=names))
    assert says in said
    assert f"error: {line}" in said


def sites(folder: Path, x: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> None:
    (folder / "job.toml").write_text(SITES)
    for client, values in x.items():
        (folder / "sites" / client).mkdir(parents=True)
        y = np.arange(len(values), dtype=np.int64) % 2
        np.savez(folder / "sites" / client / "part.npz", x=values, y=y)


def some(n: int = 20, fill: float | None = None) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    x = np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32)
    return x if fill is None else np.full_like(x, fill)


@pytest.mark.slow
def test_a_client_whose_data_gives_nan_is_named_and_dropped_or_stops_the_run(here: Path) -> None:
    sites(here, {"good": some(), "better": some(24), "sick": some(20, 3e38)})
    environment = {**os.environ, "COLUMNS": "300"}
    program = "import sys; from atoll.cli.main import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", program, "run", "job.toml"], cwd=here, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 1: client sick failed: not_finite" in done.stdout
    assert "round 2/2  2 clients, 1 lost" in done.stdout
    stop = 'policy={name="synchronous", on_failure="stop"}'
    said = atoll("run", "job.toml", "--set", stop, cwd=here, code=1)
    assert "error: round 1, 'train': the policy stops at a failure, and client sick failed (not_finite: " in said
    few = 'policy={name="synchronous", min_updates=3}'
    said = atoll("run", "job.toml", "--set", few, cwd=here, code=1)
    assert "2 of 3 clients answered, and the policy's min_updates is 3; client sick failed" in said


@pytest.mark.slow
def test_data_that_a_client_cannot_train_on(here: Path) -> None:
    sites(here, {"good": some(), "empty": some(0)})
    assert "client 'empty' has no data: its arrays have no example" in atoll("run", "job.toml", cwd=here, code=1)
    shutil.rmtree(here / "sites")
    sites(here, {"good": some(), "odd": np.zeros((5, 4), np.float32)})
    assert "only the first axis may differ" in atoll("run", "job.toml", cwd=here, code=1)
    (here / "sites" / "odd" / "part.npz").write_bytes(b"PK no zip")
    assert "cannot be read as .npz" in atoll("run", "job.toml", cwd=here, code=1)
    shutil.rmtree(here / "sites" / "odd")
    (here / "sites" / "odd").mkdir()
    assert "client 'odd' has no data" in atoll("run", "job.toml", cwd=here, code=1)


@pytest.mark.slow
def test_more_clients_than_there_are_is_said_before_training(here: Path) -> None:
    assert "9999 clients with 1 or more examples each need 9999" in atoll(
        "run", "job.toml", "--set", "data.clients=9999", cwd=here, code=2
    )
    said = atoll("check", "job.toml", "--set", 'policy={name="synchronous", clients_per_round=5}', cwd=here, code=2)
    assert "clients_per_round = 5: there are only 4 clients" in said
    sites(here, {"one": some(), "two": some()})
    said = atoll("run", "job.toml", "--set", 'policy={name="synchronous", clients_per_round=3}', cwd=here, code=2)
    assert "policy in_flight = 3, but sites has 2 clients" in said


@pytest.mark.slow
def test_a_full_disk(here: Path, small: Path) -> None:
    big = ["--set", "task.model.hidden=[2000]"]  # 600 kB a checkpoint
    said = atoll("run", "job.toml", *big, "--store", str(small / "runs"), cwd=here, code=1)
    assert said.count("\n") == 1, said
    assert "full" in said


@pytest.mark.slow
def test_places_that_can_not_be_written(here: Path) -> None:
    (here / "file").write_text("not a folder")
    said = atoll("run", "job.toml", "--store", str(here / "file" / "runs"), cwd=here, code=1)
    assert str(here / "file") in said
    assert "can't be written: No such file or directory" in write_report_elsewhere(here)
    assert "could not be written" in atoll("data", "show", "digits", "--plot", "none/who.png", cwd=here, code=1)


def write_report_elsewhere(here: Path) -> str:
    atoll("run", "job.toml", cwd=here, code=0)
    return atoll("report", "last", "-o", "none/report.html", cwd=here, code=1)


@pytest.mark.slow
def test_a_run_that_another_process_holds_and_damaged_checkpoints(here: Path) -> None:
    from atoll.store.runs import Store

    atoll("run", "job.toml", cwd=here, code=0)
    with Store(here / "runs") as store, store.open("last") as run:
        run.finish("interrupted")
        said = atoll("resume", "last", cwd=here, code=1)
        assert f"the run {run.id} is in use by process {os.getpid()}; wait until it ends, or end it" in said
        checkpoints = sorted((run.folder / "checkpoints").rglob("*.*"))
    assert checkpoints
    for file in checkpoints:
        file.write_bytes(b"damaged")
    said = atoll("resume", "last", cwd=here, code=1)
    assert "is torn" in said
    assert "start the run anew" in said
