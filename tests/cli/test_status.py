"""`atoll status` and `atoll why` on this machine: runs that are over, that were never served, and what starts fast."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from atoll.cli.main import app
from atoll.deploy.operations.status import FILE, ClientState, Live, Rules, SiteState, to_json
from atoll.store.runs import Store
from atoll.types import ClientId, Event


def say(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, list(words))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kept(name: str, status: str, *, live: bool, error: str = "") -> str:
    with Store("runs") as store, contextlib.closing(store.create(name, {}, 0, 5)) as run:
        run.start()
        run.sink.emit(Event("failure", 1, "train", ClientId("a"), {}, "error: no column [age]"))
        run.sink.flush()
        if live:
            now = time.time()
            sites = (SiteState("north", False), SiteState("south", True, now, "accepted"))
            clients = (ClientState("a", "north"), ClientState("b", "south", "training", 3, 9, now - 9, now, 1, "train"))
            (run.folder / FILE).write_text(
                to_json(Live(now, now, "training", False, 1, now, now, "train", Rules(), sites, clients))
            )
        if status == "running":
            return run.id
        run.finish(status, error)
        return run.id


def test_of_runs_that_are_over(here: Path) -> None:
    failed = kept("bad", "failed", live=True, error="round 2, 'train': 1 of 2 clients answered")
    done = say("why", "bad")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[0] == f"{failed}: failed, 0 of 5 rounds"
    assert "round 2, 'train': 1 of 2 clients answered. Serve the same job again" in done.output
    assert "- a at north failed in round 2 (train): error: no column [age]." in done.output
    finished = kept("good", "finished", live=False)
    assert f"{finished} is finished" in say("why", "last").output
    assert "Go on with `atoll resume" in say("why", kept("cut", "interrupted", live=False)).output
    killed = kept("killed", "running", live=True)  # and nobody holds its lock
    told = say("status", killed).output
    assert f"The coordinator of {killed} is stopped or was killed" in told
    assert "training" not in told  # who did what then is no status now
    assert [each["run"] for each in json.loads(say("status", "--json").output)] == [killed, failed]
    assert json.loads(say("status", "killed", "--json").output)["state"] == "interrupted"
    assert json.loads(say("why", "good", "--json").output)["headline"].endswith("finished, 0 of 5 rounds")
    assert "stopped or was killed" in say("status", "killed", "--watch").output


def test_of_one_that_is_served(here: Path) -> None:
    with Store("runs") as store, store.create("hearts", {}, 0, 5) as run:  # held by this process
        now = time.time()
        sites = (SiteState("north", False), SiteState("south", True, now, "accepted"))
        clients = (ClientState("a", "north"), ClientState("b", "south", "training", 3, 9, now - 9, now, 1, "train"))
        (run.folder / FILE).write_text(to_json(Live(now, now, "training", False, 1, now, now, "train", Rules(), sites, clients)))
        told = say("status", "hearts").output.splitlines()
        assert told[0].startswith(f"{run.id}: running, round 2 of 5, 'train': 0 of 1 client answered, asked ")
        assert told[1].startswith("north, a: has not called since the coordinator began at ")
        assert told[2].startswith("south, b, round 2: training, step 3 of 9, for ")
        assert told[3].startswith("- b at south, round 2 (train): training, step 3 of 9")
        assert told[4].startswith("- north: has not called")
        assert say("status").output.startswith(f"{run.id}: running")
        (run.folder / FILE).write_text("{")
        done = say("status", "hearts")
        assert done.exit_code == 1
        assert "status.json makes no sense" in done.output


def test_of_what_is_not_there(here: Path) -> None:
    done = say("why", "hearts")
    assert done.exit_code == 2
    assert "there are no runs in runs" in done.output
    kept("hearts", "finished", live=False)
    done = say("why", "heart-2")
    assert done.exit_code == 2
    assert "did you mean 'hearts-" in done.output
    assert "no job has been served yet" in say("status").output
    done = say("status", "--coordinator", "127.0.0.1:1")
    assert done.exit_code == 2
    assert "give --identity FOLDER or --insecure-loopback" in done.output


def test_it_starts_without_torch_and_grpc(here: Path) -> None:
    kept("hearts", "running", live=True)
    program = (
        "import sys; from atoll.cli.main import app\n"
        "try: app(['why', 'hearts'])\n"
        "finally: print(*sorted(sys.modules.keys() & {'torch', 'grpc', 'numpy', 'cryptography'}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""
    assert "stopped or was killed" in done.stdout
