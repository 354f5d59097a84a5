"""A signed job whose sites come with a token and a policy: the bits are those of the simulation, and each site's log is whole."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from atoll.deploy.rules.judge import text_of
from atoll.deploy.rules.signatures import keep_signature, load_key, make_key
from atoll.deploy.verify import records, verify
from atoll.identity import authority, tokens
from atoll.job.text import parse

ATOLL = [sys.executable, "-u", "-c", "from atoll.cli.main import app; app()"]
JOB = """
atoll = 1
name = "figures"
rounds = 2
data = {name = "digits", clients = 3}
task = {name = "classification", model = {name = "mlp", inputs = 64, hidden = [16], outputs = 10}}
local = {name = "sgd", lr = 0.1}
algorithm = "scaffold"
transforms = ["int8"]
[sites]
north = ["client-0", "client-1"]
south = ["client-2"]
"""
OPEN = """
site_policy = 1
approval = "automatic"
[jobs]
names = ["figures"]
algorithms = ["scaffold"]
transforms = ["int8"]
[data]
names = ["digits"]
[leaves]
work = ["train"]
metrics = ["loss", "examples", "seconds", "steps"]
round_mib = 1.0
[code]
keys = ["KEY"]
signed_jobs = true
"""


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Whatever is in the list is ended with the test."""
    found: list[subprocess.Popen[str]] = []
    yield found
    for each in found:
        if each.poll() is None:
            each.kill()
        each.wait(30)
        if each.stdout is not None:
            each.stdout.close()


def start(started: list[subprocess.Popen[str]], folder: Path, *words: str) -> subprocess.Popen[str]:
    started.append(subprocess.Popen([*ATOLL, *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    return started[-1]


def until(process: subprocess.Popen[str], part: str) -> str:
    """The next line with this in it, in bounded time."""
    timer = threading.Timer(120, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if part in line:
                return line
    finally:
        timer.cancel()
    raise AssertionError(f"{part!r} never came: {''.join(said)}")


@pytest.mark.slow
def test_with_policies_the_bits_are_the_same_and_the_logs_are_whole(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    key = make_key(tmp_path / "me.key")
    keep_signature(load_key(tmp_path / "me.key"), tmp_path / "job.toml", text_of(parse(JOB).values))
    (tmp_path / "north.toml").write_text(OPEN.replace("KEY", key))
    (tmp_path / "south.toml").write_text(OPEN.replace("KEY", key).replace("automatic", "manual"))
    pki = authority.create(tmp_path / "pki", "trial.example", ["127.0.0.1"])
    token = {name: str(tokens.Ticket(name, tokens.invite(pki, name), pki.sha256)) for name in ("north", "south")}
    words = ("serve", "job.toml", "--listen", "127.0.0.1:0", "--enrol", "127.0.0.1:0", "--pki", "pki", "--runs", "deployed")
    coordinator = start(started, tmp_path, *words)
    address = until(coordinator, "listening on").split()[-1]
    join = ("join", address, "--enrol", until(coordinator, "giving certificates on").split()[-1], "--jobs", "1")
    north, south = (
        start(started, tmp_path, *join, "--token", token[name], "--identity", f"{name}-id", "--policy", f"{name}.toml")
        for name in ("north", "south")
    )
    until(north, "taking part with 2 clients")
    until(south, "connected to")
    approval = [*ATOLL, "site", "approve", "figures", "--folder", "south", "--by", "anna"]
    for _ in range(60):  # the invitation may not have come yet
        asked = subprocess.run(approval, cwd=tmp_path, capture_output=True, text=True)
        if asked.returncode == 0:
            break
    assert asked.returncode == 0, asked.stderr
    told = [each.communicate(timeout=90)[0] for each in (coordinator, north, south)]
    assert [each.returncode for each in started] == [0, 0, 0], told
    subprocess.run([*ATOLL, "run", "job.toml", "--store", "simulated"], cwd=tmp_path, check=True, capture_output=True)
    one, other = (load_file(next((tmp_path / at).glob("*/model/model.safetensors"))) for at in ("deployed", "simulated"))
    assert all(one[name].equal(other[name]) for name in other)
    for site, clients in (("north", ["client-0", "client-1"]), ("south", ["client-2"])):
        log = tmp_path / site / "audit.jsonl"
        assert verify(log).findings == ()
        left = [(record["round"], record["client"], record["kind"]) for record in records(log) if record["event"] == "left"]
        assert sorted(left) == [(round, client, "update") for round in range(2) for client in clients]
    assert "approved" in [record["event"] for record in records(tmp_path / "south" / "audit.jsonl")]
