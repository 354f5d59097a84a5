"""Atoll beside Flower as both are deployed: a server and four sites as processes, a model of 100 MB down and up each round.

`atoll serve` and four `atoll join` beside a superlink and four supernodes of Flower 1.41, in its own environment
(`peers/environments.py`), on loopback without TLS. A site takes one step of gradient descent on eight examples, so that a
round is what the federation costs; both begin with the same parameters, and must end with the same.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from shutil import copyfile
from typing import Any, NamedTuple

import torch
from machines import ATOLL, Machine, machines
from results import publish, verdict
from safetensors.torch import load_file
from torch import Tensor

from atoll.data.table import table
from atoll.models.mlp import mlp

PEERS = Path(__file__).parent / "peers"
sys.path.insert(1, str(PEERS))

from environments import cache, environment  # noqa: E402
from watch import MARK, SHARE, Family  # noqa: E402

SITES, ROWS, INPUTS, CLASSES = 4, 8, 64, 10  # rows a site
WITHIN = 1e-4  # of the largest difference of a parameter, since sums are taken in other orders
TIMEOUT_S = 900.0
JOB = """
atoll = 1
rounds = {rounds}

[data]
name = "table"
path = "{folder}/rows.csv"
label = "digit"
by = "site"
test_fraction = 0.0
server_fraction = 0.0

[task]
name = "classification"
model = {{ name = "mlp", inputs = 64, hidden = [{hidden}], outputs = 10 }}

[local]
name = "sgd"
lr = 0.1
batch_size = 8

[algorithm]
name = "fedavg"

[sites]
site-0 = ["site-0"]
site-1 = ["site-1"]
site-2 = ["site-2"]
site-3 = ["site-3"]
"""
APP = """
[project]
name = "beside-flower"
version = "1.0.0"
description = "A benchmark"
license = "Apache-2.0"
dependencies = ["flwr"]

[tool.flwr.app]
publisher = "atoll"

[tool.flwr.app.components]
serverapp = "flower_app:server"
clientapp = "flower_app:client"

[tool.flwr.app.config]
folder = "{folder}"
rounds = {rounds}
"""


class Scale(NamedTuple):
    """How large and how long."""

    hidden: tuple[int, int]
    rounds: int
    repeats: int


WHOLE, QUICK = Scale((4900, 5000), 6, 3), Scale((900, 1000), 2, 1)


class Ran(NamedTuple):
    """One run of one system."""

    first_s: float  # from the start of the server to the end of the first round
    round_s: tuple[float, ...]  # of the others
    server_mb: float  # at its peak
    all_mb: float
    params: Mapping[str, Tensor]


class Memory:
    """Samples families of processes, the server's first, and keeps the peaks, while the `with` lasts."""

    def __init__(self) -> None:
        self.families: list[Family] = []
        self.server_mb = self.all_mb = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        pause_s = 0.1
        while not self._ended.wait(pause_s):
            began = time.thread_time()
            sizes = [family.bytes() / 1e6 for family in list(self.families)]
            self.server_mb, self.all_mb = max(self.server_mb, *sizes[:1], 0.0), max(self.all_mb, sum(sizes))
            pause_s = max(0.1, (time.thread_time() - began) / SHARE)


@contextmanager
def watched() -> Iterator[tuple[Memory, Callable[..., Machine]]]:
    """Peaks of memory, and how to start a process that counts; nobody is left afterwards."""
    with machines() as started, Memory() as memory:

        def start(folder: Path, *command: str | Path, **environment: str) -> Machine:
            mark = uuid.uuid4().hex
            made = Machine(folder, [str(word) for word in command], **{**environment, MARK: mark})
            started.append(made)
            memory.families.append(Family(made.process.pid, f"{MARK}={mark}"))
            return made

        try:
            yield memory, start
        finally:
            for family in memory.families:
                family.kill()


def prepared(folder: Path, scale: Scale) -> None:
    """The rows as CSV, each site's as Atoll reads them, and the first parameters."""
    chance = torch.Generator().manual_seed(0)
    lines = [",".join([*(f"x{i}" for i in range(INPUTS)), "digit", "site"])]
    for row in range(SITES * ROWS):
        numbers = (f"{x:.4f}" for x in torch.randn(INPUTS, generator=chance).tolist())
        lines.append(",".join([*numbers, str(row % CLASSES), f"site-{row % SITES}"]))
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    held = table(str(folder / "rows.csv"), label="digit", by="site", test_fraction=0.0, server_fraction=0.0)
    for name, splits in held.clients.items():
        rows = splits["train"].take(torch.arange(ROWS))
        torch.save({"x": rows["x"], "y": rows["y"]}, folder / f"{name}.pt")
    torch.save(mlp(INPUTS, scale.hidden, CLASSES).state_dict(), folder / "first.pt")
    (folder / "job.toml").write_text(JOB.format(rounds=scale.rounds, folder=folder, hidden=", ".join(map(str, scale.hidden))))


def atoll(folder: Path, rounds: int) -> Ran:
    """A coordinator and its sites."""
    began = time.monotonic()
    with watched() as (memory, start):
        words = ("--listen", "127.0.0.1:0", "--runs", "runs", "--data", "none", "--insecure-loopback")
        hub = start(folder, *ATOLL, "serve", "job.toml", *words)
        at = hub.wait_for("listening on", TIMEOUT_S).text.split()[-1]
        sites = [
            start(folder / f"at-{i}", *ATOLL, "join", at, "--site", f"site-{i}", "--insecure-loopback", "--jobs", "1")
            for i in range(SITES)
        ]
        for each in (hub, *sites):
            if code := each.ended(TIMEOUT_S):
                raise RuntimeError(f"{each.process.args!r} ended with {code}:\n{each.told()}")
        ends = [hub.wait_for(f"round {number + 1}/{rounds} ", 1).came_s for number in range(rounds)]
    params = load_file(next((folder / "runs").glob("*/model/model.safetensors")))
    return Ran(ends[0] - began, _between(ends), memory.server_mb, memory.all_mb, params)


def flower(folder: Path, rounds: int, python: Path) -> Ran:
    """A superlink, its supernodes, and `flwr run`."""
    home, app = folder / "home", folder / "app"
    for each in (home, app):
        each.mkdir()
    copyfile(PEERS / "flower_app.py", app / "flower_app.py")
    (app / "pyproject.toml").write_text(APP.format(folder=folder, rounds=rounds))
    ports = _free_ports(1 + SITES)
    at = f"127.0.0.1:{ports[0]}"
    (home / "config.toml").write_text(f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "{at}"\ninsecure = true\n')
    settings = {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }
    began = time.monotonic()
    with watched() as (memory, start):
        start(
            folder, python.parent / "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(ports[0]), **settings
        )
        _listening(ports[0])
        for i, port in enumerate(ports[1:]):
            words = ("--insecure", "--superlink", at, "--host", "127.0.0.1", "--port", str(port))
            numbered = ("--node-config", f"partition-id={i} num-partitions={SITES}")
            start(folder / f"at-{i}", python.parent / "flower-supernode", *words, *numbered, **settings)
        run = start(folder, python.parent / "flwr", "run", app, "bench", "--stream", **settings)
        deadline = time.monotonic() + TIMEOUT_S
        while not (folder / "said.json").exists():
            if time.monotonic() > deadline or (run.process.poll() or 0) > 0:
                raise RuntimeError(f"Flower has not ended:\n{run.told()}")
            time.sleep(0.2)
    said = json.loads((folder / "said.json").read_text())
    if said["heard"] != rounds:
        raise RuntimeError(f"Flower's clients answered in {said['heard']} of {rounds} rounds")
    return Ran(
        said["ends_s"][0] - began, _between(said["ends_s"]), memory.server_mb, memory.all_mb, torch.load(folder / "last.pt")
    )


def _between(ends_s: list[float]) -> tuple[float, ...]:
    return tuple(after - before for before, after in pairwise(ends_s))


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for each in held:
        each.bind(("127.0.0.1", 0))
    found = [int(each.getsockname()[1]) for each in held]
    for each in held:
        each.close()
    return found


def _listening(port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError("the superlink does not listen")


def row(system: str, runs: list[Ran], ours: list[Ran]) -> dict[str, Any]:
    """Medians over the runs, and how far the parameters are from Atoll's first."""
    round_s = statistics.median(statistics.median(run.round_s) for run in runs)
    apart = max(float((x - runs[-1].params[name]).abs().max()) for name, x in ours[0].params.items())
    return {
        "system": system,
        "s a round": round(round_s, 2),
        "x Atoll": round(round_s / statistics.median(statistics.median(run.round_s) for run in ours), 2),
        "first round s": round(statistics.median(run.first_s for run in runs), 1),
        "server MB": round(statistics.median(run.server_mb for run in runs)),
        "all MB": round(statistics.median(run.all_mb for run in runs)),
        "parameters apart": apart,
        "": verdict(apart, at_most=WITHIN),
    }


def one(system: str, scale: Scale, python: Path | None) -> Ran:
    """A run of one system in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="network-") as place:
        prepared(Path(place), scale)
        ran = flower(Path(place), scale.rounds, python) if system == "flower" and python else atoll(Path(place), scale.rounds)
    print(f"{system}: {', '.join(f'{s:.2f}' for s in ran.round_s)} s a round", file=sys.stderr)
    return ran


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a model of 4 MB, two rounds, once: does everything work?")
    parser.add_argument("--repeats", type=int, help="runs of each, in turn")
    parser.add_argument("--rounds", type=int, help="at least 2: the first is not in the median")
    given = parser.parse_args()
    scale = QUICK if given.quick else WHOLE
    scale = scale._replace(repeats=given.repeats or scale.repeats, rounds=max(given.rounds or scale.rounds, 2))
    torch.set_num_threads(1)
    made = environment("flower", cache())
    if made.python is None:
        print(f"FLOWER IS NOT MEASURED: {made.problem}", file=sys.stderr)
    runs: dict[str, list[Ran]] = {"atoll": [], "flower": []}
    try:
        for _ in range(scale.repeats):  # in turn: a slow spell hits both
            for system, ran in runs.items():
                if system == "atoll" or made.python is not None:
                    ran.append(one(system, scale, made.python))
    except KeyboardInterrupt:
        print("stopped: the table is of the runs that had ended")
    if not runs["atoll"]:
        raise SystemExit("stopped before a run had ended")
    numbers = sum(x.numel() for x in runs["atoll"][0].params.values())
    note = f"{numbers:,} float32 parameters, {SITES} sites, {scale.rounds} rounds, medians of {scale.repeats}; memory: Pss"
    publish("flower_network" + "_quick" * given.quick, [row(name, ran, runs["atoll"]) for name, ran in runs.items() if ran], note)


if __name__ == "__main__":
    main()
