"""Real processes: a site is killed, then its coordinator, and what is said of it."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from atoll.deploy.operations.look import QUESTION, answer_of, look, question_of
from atoll.deploy.operations.status import Status
from atoll.deploy.operations.why import reasons
from atoll.remote.asking import ask
from atoll.store.runs import Store
from tests.deploy.rules.test_policy_machines import start, started

__all__ = ["started"]  # the fixture

JOB = """
atoll = 1
name = "figures"
rounds = 3
data = {name = "digits", clients = 2}
task = {name = "classification", model = {name = "mlp", inputs = 64, hidden = [16], outputs = 10}}
local = {name = "sgd", lr = 0.001, steps = 100000000}
algorithm = "fedavg"
[sites]
north = ["client-0"]
south = ["client-1"]
"""


def becomes(true: Callable[[], object], what: str) -> None:
    """In the time that two processes need to start on a busy machine."""
    ends = time.monotonic() + 240.0
    while not true():
        assert time.monotonic() < ends, what
        time.sleep(0.2)


@pytest.mark.slow
def test_a_site_that_is_killed_is_named_with_since_when(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{free.getsockname()[1]}"
    waived = "--insecure-loopback"
    coordinator = start(started, tmp_path, "serve", "job.toml", "--listen", at, waived, "--start-with", "1")
    south = start(started, tmp_path, "join", at, waived, "--site", "south")
    found: list[Status] = []

    def says(*parts: str) -> bool:
        with Store(tmp_path / "runs") as store:
            if not store.list():
                return False  # it has not begun
            found[:] = look(store, "figures", 5)
        told = reasons(found[0])
        return all(any(part in each for each in told) for part in parts)

    training = "client-1 at south, round 1 (train): training, step "
    becomes(lambda: says(training, " of 100000000", "north: has not called since"), "it never trained")
    south.send_signal(signal.SIGKILL)
    becomes(lambda: says("south: offline since "), "nobody missed the site")
    first = reasons(found[0])[0]
    assert first.startswith("south: offline since ")
    assert "Round 1 waits for its client-1 (train)" in first
    assert {(each.site, each.line) for each in found[0].logs} >= {
        ("south", "taking part with 1 clients: client-1"),
        ("south", "round 1, client-1, train: begins"),
    }
    (afar,) = answer_of(ask(at, None, QUESTION, question_of("figures"), insecure=True))
    assert reasons(afar)[0].partition(" (")[0] == first.partition(" (")[0]
    (own,) = answer_of(ask(at, None, QUESTION, question_of("figures"), insecure=True, name="north"))
    assert "south" not in repr(own)
    coordinator.send_signal(signal.SIGKILL)
    coordinator.wait(30)
    assert says("The coordinator of figures-", "Serve the same job again: it begins anew, since no round is done.")
