"""Three processes over real sockets, a coordinator and two sites with several clients each, give the bits of a simulation.

Killed and started again: `test_kills.py`.
"""

from __future__ import annotations

import csv
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.identity import authority, credentials, enrolment, tokens
from atoll.job.build import load_job
from atoll.job.execution import carry_out
from atoll.rng import seeded
from atoll.store.runs import Store
from tests.deploy.jobs import DIGITS, TWO_SITES

PATIENCE_S = 240.0
JOB = DIGITS + TWO_SITES
COMPRESSED = '[[transforms]]\nname = "feedback"\naround = [{ name = "top_k", fraction = 0.1 }]'
ADAPTED = """
atoll = 1
seed = 3
rounds = 2

[data]
name = "table"
path = "{folder}/said.csv"
text = "said"
label = "topic"
by = "town"

[tokens]
length = 8

[task]
name = "sequence_classification"
model = "{folder}/bert"
classes = 2
adapter = {{ rank = 2, targets = ["query", "value"] }}

[local]
name = "adamw"
lr = 1e-2
batch_size = 8
steps = 4

[algorithm]
name = "fedavg"

[sites]
north = ["A", "B"]
south = ["C"]
"""


class Machine:
    """A process of `atoll`, its lines read as they come."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.told = list[str]()
        self._came = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", "from atoll.cli.main import app; app()", *words],
            cwd=folder,
            env={**os.environ, "COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._came:
                self.told.append(line)
                self._came.notify_all()

    def wait_for(self, part: str, times: int = 1) -> None:
        """Until so many lines with this in them have come."""
        with self._came:
            came = self._came.wait_for(lambda: sum(part in line for line in self.told) >= times, PATIENCE_S)
        assert came, f"{part!r} never came: {''.join(self.told)}"

    def kill(self) -> None:
        """As a power cut would, but for the disk."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def ended(self) -> int:
        """Its exit code, in time."""
        code = self.process.wait(PATIENCE_S)
        self._reader.join(10)
        return code


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    """Whatever is in the list is ended with the test."""
    started: list[Machine] = []
    yield started
    for each in started:
        if each.process.poll() is None:
            each.kill()


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def tiny(folder: Path) -> None:
    """Texts of two topics in three towns, and the smallest BERT with a tokenizer of words."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    words = ["sun", "rain", "wind", "snow", "gold", "coin", "bank", "debt"]
    chance = random.Random(0)
    with (folder / "said.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["said", "topic", "town"])
        for i in range(90):
            half = words[4 * (i % 2) :][:4]
            writer.writerow([" ".join(chance.choices(half, k=5)), ["weather", "money"][i % 2], "ABC"[i % 3]])
    known = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with seeded(3):
        model = transformers.BertModel(transformers.BertConfig(vocab_size=10, max_position_embeddings=16, **sizes))
    model.save_pretrained(folder / "bert")
    fast.save_pretrained(folder / "bert")


def simulated(folder: Path, name: str) -> dict[str, str]:
    """The model of the job in `name`.toml, run in this process by the serial engine."""
    job = load_job(folder / f"{name}.toml")
    with Store(folder / "whole") as store, store.create(name, {}, job.seed, job.rounds) as run:
        carry_out(job, run)
    return digests(folder / "whole", name)


def digests(store: Path, name: str) -> dict[str, str]:
    """The SHA-256 of each file of weights."""
    found = sorted(store.glob(f"{name}-*/model/**/*.safetensors"))
    assert found, f"{name} has no model"
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in found}


def certified(folder: Path, *sites: str) -> None:
    """An authority in `pki`, and an identity for each site."""
    made = authority.create(folder / "pki", "trial.example", ["127.0.0.1"])
    for site in sites:
        request, token = credentials.prepare(folder / f"{site}-id", site), tokens.invite(made, site)
        answer = authority.pem(enrolment.enrol(made, token, request))
        credentials.accept(folder / f"{site}-id", site, answer, made.ca_pem, sha256=made.sha256)


def join(folder: Path, at: str, site: str) -> Machine:
    return Machine(folder, "join", at, "--site", site, "--insecure-loopback", "--jobs", "1")


@pytest.mark.slow
def test_deployed_jobs_give_the_bits_of_simulations(tmp_path: Path, machines: list[Machine]) -> None:
    jobs = {
        "fedavg": JOB.format(rounds=3, algorithm="fedavg"),
        "scaffold": JOB.format(rounds=3, algorithm="scaffold"),
        "compressed": JOB.format(rounds=3, algorithm="fedavg") + COMPRESSED,
        "adapted": ADAPTED.format(folder=tmp_path),
    }
    tiny(tmp_path)
    for name, text in jobs.items():
        (tmp_path / f"{name}.toml").write_text(text)
    at = f"127.0.0.1:{port()}"
    files = [f"{name}.toml" for name in jobs]
    certified(tmp_path, "north", "south")
    machines.append(Machine(tmp_path, "serve", *files, "--listen", at, "--runs", "runs", "--pki", "pki"))
    for site in ("north", "south"):
        machines.append(Machine(tmp_path, "join", at, "--identity", f"{site}-id", "--jobs", str(len(jobs))))
    expected = {name: simulated(tmp_path, name) for name in jobs}
    assert [each.ended() for each in machines] == [0, 0, 0], "".join(line for each in machines for line in each.told)
    assert {name: digests(tmp_path / "runs", name) for name in jobs} == expected


@pytest.mark.slow
def test_a_coordinator_and_a_site_are_stopped_and_say_how_to_go_on(tmp_path: Path, machines: list[Machine]) -> None:
    (tmp_path / "alone.toml").write_text(JOB.format(rounds=2, algorithm="fedavg"))
    at = f"127.0.0.1:{port()}"
    coordinator = Machine(tmp_path, "serve", "alone.toml", "--listen", at, "--runs", "runs", "--insecure-loopback")
    north = join(tmp_path, at, "north")  # south never comes
    machines += [coordinator, north]
    north.wait_for("taking part with 3 clients")
    coordinator.wait_for("alone: training")
    for each in machines:
        each.process.send_signal(signal.SIGINT)
    assert [each.ended() for each in machines] == [130, 130]
    assert "serve the same jobs again to go on" in coordinator.told[-1]
    assert "join again to go on" in north.told[-1]
    with Store(tmp_path / "runs") as store:
        assert store.record("last").status == "interrupted"
