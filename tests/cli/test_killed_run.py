"""A run killed with SIGKILL at random moments, and resumed as a user would, ends in the bits of one never killed."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

JOB = """\
atoll = 1
name = "killed"
seed = 3
rounds = 8

[data]
name = "digits"
clients = 12

[data.partition]
name = "dirichlet"
alpha = 0.5

[task]
name = "classification"

[task.model]
name = "mlp"
inputs = 64
hidden = [64]

[local]
name = "sgd"
lr = 0.1
epochs = 3

[algorithm]
name = "{algorithm}"

[policy]
name = "{policy}"
{knobs}

[engine]
name = "{engine}"

[evaluation]
every = 2
"""
# (algorithm, policy, its knobs, engine): one stateless, one with client memory, one with work in flight between rounds.
CASES = [
    ("fedadam", "synchronous", "clients_per_round = 8", "processes"),
    ("scaffold", "synchronous", "clients_per_round = 6", "processes"),
    ("fedbuff", "buffered", "clients_in_flight = 6\nbuffer = 3", "serial"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "policy", "knobs", "engine"), CASES)
def test_a_killed_run_ends_in_the_same_bits(tmp_path: Path, algorithm: str, policy: str, knobs: str, engine: str) -> None:
    job = tmp_path / "killed.toml"
    job.write_text(JOB.format(algorithm=algorithm, policy=policy, knobs=knobs, engine=engine))
    assert atoll(tmp_path, "run", str(job), "--store", "whole").wait(timeout=240) == 0
    chance = random.Random(f"{algorithm} {engine}")
    killed = kill_at_round(tmp_path, chance.randint(1, 3), chance, "run", str(job), "--store", "broken")
    killed += kill_at_round(tmp_path, chance.randint(4, 7), chance, "resume", "last", "--store", "broken")
    assert killed, "both were done before they could be killed"
    last = atoll(tmp_path, "resume", "last", "--store", "broken")
    told = last.communicate(timeout=240)[0]
    assert last.returncode == 0, told
    assert digest(tmp_path / "broken") == digest(tmp_path / "whole")


def atoll(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-c", "from atoll.cli.main import app; app()", *words],
        cwd=folder,
        env={**os.environ, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_at_round(folder: Path, number: int, chance: random.Random, *words: str) -> int:
    """Start it, wait until it says that round `number` is done, and kill it up to 80 ms later; 1 if that was in time."""
    process = atoll(folder, *words)
    limit = threading.Timer(240, process.kill)
    limit.start()
    assert process.stdout is not None
    told = []
    for line in process.stdout:
        told.append(line)
        if line.startswith(f"round {number}/"):
            time.sleep(chance.uniform(0.0, 0.08))
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.read()
    limit.cancel()
    code = process.wait(timeout=60)
    assert code in (0, -signal.SIGKILL), "".join(told)
    return int(code != 0)


def digest(store: Path) -> str:
    (model,) = store.glob("*/model/model.safetensors")
    return hashlib.sha256(model.read_bytes()).hexdigest()
