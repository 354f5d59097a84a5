"""Processes of `atoll` that are born in milliseconds and die where a test wants: a zygote forks them, its imports done.

The zygote has one thread and has opened no gRPC object, so that what it forks is as good as what was started anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tests.deploy.points import POINTS, arm

PATIENCE_S = 120.0  # for what takes a second on an idle machine
ROOT = Path(__file__).parents[2]


def zygote() -> None:
    """Do what is asked for, a line of JSON each: simulate a job, fork a process, say which have ended and how."""
    import torch

    torch.set_num_threads(1)
    import atoll.cli.main
    import atoll.deploy.rules.gated
    import atoll.remote.hub
    import atoll.remote.link  # noqa: F401

    ended: dict[int, int | None] = {}  # None: it lives
    for line in sys.stdin:
        order, said = json.loads(line), None
        if order["do"] == "simulate":
            _simulate(Path(order["folder"]), order["job"])
        elif order["do"] == "fork":
            assert not _others(), f"a process with threads is not forked: {_others()}"
            said = os.fork()
            if said == 0:
                _live(order)
            ended[said] = None
        for pid in [pid for pid, how in ended.items() if how is None]:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                ended[pid] = os.waitstatus_to_exitcode(status)
        sys.stdout.write(json.dumps([said, {pid: how for pid, how in ended.items() if how is not None}]) + "\n")
        sys.stdout.flush()
    for pid in [pid for pid, how in ended.items() if how is None]:
        os.kill(pid, signal.SIGKILL)


def _others() -> list[str]:
    """Threads beside the first; jemalloc, which comes with pyarrow, stops and starts its own at a fork."""
    tasks = [task for task in Path("/proc/self/task").glob("*") if task.name != str(os.getpid())]
    return [name for task in tasks if not (name := (task / "comm").read_text().strip()).startswith("jemalloc")]


def _simulate(folder: Path, name: str) -> None:
    """The job in `name`.toml with the serial engine, here, so that whoever is forked has loaded what it needs."""
    from atoll.job.build import load_job
    from atoll.job.execution import carry_out
    from atoll.store.runs import Store

    job = load_job(folder / f"{name}.toml")
    with Store(folder / "simulated") as store, store.create(name, {}, job.seed, job.rounds) as run:
        carry_out(job, run)


def _live(order: dict[str, Any]) -> NoReturn:
    """A process of `atoll`, to its end."""
    code: object = 1
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for new, old in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(new, old)
        os.chdir(order["folder"])
        sys.modules["atoll.cli.serve"].write_report = lambda record: "left out"  # type: ignore[attr-defined]  # pictures take a second
        for name in order["points"]:
            arm(POINTS[name])
        sys.argv = ["atoll", *order["words"]]
        from atoll.cli.main import app

        app()
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


class Nursery:
    """Owns a zygote, and with it all that it has forked: none outlives `close`."""

    def __init__(self) -> None:
        paths = f"{ROOT}{os.pathsep}{ROOT / 'src'}"
        alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-c", "from tests.deploy.kills import zygote; zygote()"],
            cwd=ROOT,
            env={**os.environ, **alone, "PYTHONPATH": paths, "COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ended: dict[int, int] = {}

    def ask(self, do: str, **more: Any) -> Any:
        """What the zygote says to an order."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"do": do, **more}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, f"the zygote has died with {self._process.wait(10)}"
        said, ended = json.loads(line)
        self.ended = {int(pid): how for pid, how in ended.items()}
        return said

    def simulate(self, folder: Path, name: str) -> None:
        """`name`.toml in this process's bits: a run in `simulated`."""
        self.ask("simulate", folder=str(folder), job=name)

    def close(self) -> None:
        """End it, and all its children."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


class Machine:
    """A process of `atoll` that a nursery has forked. `points`: names of `POINTS` at which it is to die."""

    def __init__(self, nursery: Nursery, folder: Path, name: str, words: list[str], points: tuple[str, ...] = ()) -> None:
        self._nursery, self.log = nursery, folder / f"{name}.log"
        self._heard_bytes = self.log.stat().st_size if self.log.exists() else 0  # of those before it
        self.pid = nursery.ask("fork", folder=str(folder), words=words, log=str(self.log), points=points)

    @property
    def told(self) -> str:
        """What it has printed."""
        return self.log.read_text()[self._heard_bytes :] if self.log.exists() else ""

    def wait_for(self, part: str, times: int = 1) -> None:
        """Until so many lines with this in them have come."""
        ends = time.monotonic() + PATIENCE_S
        while sum(part in line for line in self.told.splitlines()) < times:
            assert time.monotonic() < ends, f"{part!r} never came: {self.told}"
            time.sleep(0.005)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """As a power cut would, but for the disk; nothing where it has ended."""
        self._nursery.ask("look")
        if self.pid not in self._nursery.ended:  # if it has died since, it is not reaped yet, and the number still its own
            os.kill(self.pid, number)

    def ended(self, within_s: float = PATIENCE_S) -> int | None:
        """How it has ended; None where it has not within so long."""
        ends = time.monotonic() + within_s
        while True:
            self._nursery.ask("look")
            if self.pid in self._nursery.ended:
                return self._nursery.ended[self.pid]
            if time.monotonic() >= ends:
                return None
            time.sleep(0.01)


class Left(NamedTuple):
    """What a job leaves: SHA-256 by file of its model, and of its clients' memory by client."""

    model: dict[str, str]
    memory: dict[str, str]


def left(name: str, store: Path, *sites: Path) -> Left:
    """Of the newest run of that name; `sites`: whose folders hold the memory, else the run's own does."""
    run = max(store.glob(f"{name}-*"), key=lambda folder: folder.stat().st_mtime_ns)
    places = [site / "memory" / run.name for site in sites] or [run / "memory"]
    memory = {file.parent.name: _sha256(file) for place in places for file in place.glob("*/committed")}
    pending = [file for place in places for file in place.glob("*/*.pending")]
    assert not pending, f"proposals that nobody settled: {pending}"
    return Left({file.name: _sha256(file) for file in sorted((run / "model").glob("**/*.safetensors"))}, memory)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class Trial:
    """One job between a coordinator and two sites, any of which may be killed and started again."""

    def __init__(self, nursery: Nursery, folder: Path, name: str) -> None:
        self._nursery, self.folder, self.name, self._at = nursery, folder, name, f"127.0.0.1:{free_port()}"
        self.machines: dict[str, Machine] = {}

    def start(self, who: str, *points: str) -> Machine:
        """The coordinator ("serve") or a site by its name; once more after its death, with the same words."""
        if who == "serve":
            words = ["serve", f"{self.name}.toml", "--listen", self._at, "--runs", "runs", "--insecure-loopback"]
        else:
            words = ["join", self._at, "--site", who, "--insecure-loopback", "--jobs", "1"]
        self.machines[who] = Machine(self._nursery, self.folder, who, words, points)
        return self.machines[who]

    def end(self) -> Left:
        """Wait until the job has ended; what it leaves. A site that was not there when it did may have to be stopped."""
        served = self.machines["serve"].ended()
        assert served == 0, f"the coordinator ended with {served}: {self.log()}"
        for who, machine in self.machines.items():
            if who != "serve" and (how := machine.ended(3.0)) != 0:
                assert how is None, f"{who} ended with {how}: {self.log()}"
                machine.kill(signal.SIGTERM)
                assert machine.ended() == 128 + signal.SIGTERM, self.log()
        return left(self.name, self.folder / "runs", self.folder / "north", self.folder / "south")

    def log(self) -> str:
        """What everybody has said."""
        return "".join(f"\n--- {file.stem}\n{file.read_text()}" for file in sorted(self.folder.glob("*.log")))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
