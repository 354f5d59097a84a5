"""Atoll beside Flower, pfl-research, NVFlare and FedJAX on the same images, split and model: `python benchmarks/peers/run.py`.

Each peer runs in an environment of its own, which is made the first time. Systems run in turn, a whole process a run; the
table has medians over the runs, with the accuracy beside the time. A system that cannot run is in it too, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent))  # for results.py

import environments  # noqa: E402
from images import images  # noqa: E402
from results import write  # noqa: E402
from table import OURS, Run, cells, medians, text, verdicts  # noqa: E402
from watch import watch  # noqa: E402
from workload import WORKLOADS  # noqa: E402

ROUNDS = {"w1-mlp": 20, "w2-mlp": 10, "w1-cnn": 4, "tiny": 2}
DEFAULT = ("w1-mlp", "w2-mlp", "w1-cnn")
COMPUTE = ("eager", "traced", "stacked")
SETTINGS = {
    # One BLAS thread a process for all; Ray, Flower and NVFlare keep what they write in the run's own folder and call nobody.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONPATH": str(HERE),
    "PYTHONDONTWRITEBYTECODE": "",  # peers were compiled when they were installed; Atoll's sources are in their first run
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


class System(NamedTuple):
    """One row: a script, the environment that it runs in ("": this one), and its setting."""

    name: str
    script: str
    environment: str
    variant: str = ""
    not_on: tuple[str, ...] = ()  # workloads that it cannot do, for the reason `why`
    why: str = ""


RESIDENT = "a cohort of 100 resident clients takes more than 30 GB"
PEERS = (
    System("flower", "flower.py", "flower"),
    System("pfl-1-process", "pfl_research.py", "pfl", "1"),
    System("pfl-2-processes", "pfl_research.py", "pfl", "2"),
    System("nvflare", "nv_flare.py", "nvflare", "", ("w2-mlp",), RESIDENT),
    System("nvflare-fast-poll", "nv_flare.py", "nvflare", "fast-poll", ("w2-mlp",), RESIDENT),
    System("fedjax", "fed_jax.py", "fedjax"),
)


def ours(compute: Sequence[str]) -> list[System]:
    """Atoll's rows: two worker processes, and one process, for each way to compute."""
    return [
        System(f"{OURS}-{engine}-{way}", "ours.py", "", f"{engine}-{way}")
        for way in compute
        for engine in ("processes", "serial")
    ]


def main() -> None:
    options = _options()
    systems = [s for s in [*ours(options.ours), *PEERS] if not options.only or s.name.startswith(tuple(options.only))]
    if not systems:
        raise SystemExit(
            f"--only {','.join(options.only)}: no system's name begins so; there are {', '.join(s.name for s in PEERS)}"
        )
    cache, runs = environments.cache(), list[Run]()
    try:
        pythons = install(systems, options.workloads, cache, runs)
        for workload in options.workloads:
            data = options.data or images(WORKLOADS[workload].clients, cache / "data")
            rounds = 2 if options.quick else options.rounds or ROUNDS[workload]
            for repeat in range(options.repeats):
                for system in (s for s in systems if s.environment in pythons):  # in turn: a slow spell hits all
                    _say(f"{workload}, run {repeat + 1} of {options.repeats}: {system.name}")
                    runs.append(measure(system, workload, rounds, data, pythons[system.environment], options.timeout_s))
                    _say(f"  {_short(runs[-1])}")
    finally:  # who stops an hour's run keeps what it has measured
        whole = set(options.workloads) == set(DEFAULT)
        report(runs, options.repeats, "peers" if whole else "-".join(["peers", *options.workloads]))


def install(systems: Sequence[System], workloads: Sequence[str], cache: Path, runs: list[Run]) -> dict[str, Path]:
    """The interpreter of each environment ("": this one); who has none is noted in `runs` for every workload."""
    pythons = {"": Path(sys.executable)}
    for peer in dict.fromkeys(s.environment for s in systems if s.environment):
        made = environments.environment(peer, cache)
        if made.python:
            pythons[peer] = made.python
            continue
        _say(f"{peer} CANNOT BE INSTALLED and is left out: {made.problem}")
        lost = [s.name for s in systems if s.environment == peer]
        runs += [Run(workload, name, problem=f"not installed: {made.problem}") for workload in workloads for name in lost]
    return pythons


def measure(system: System, workload: str, rounds: int, data: Path, python: Path, timeout_s: float) -> Run:
    """One run of a system, in a folder that is gone afterwards."""
    if workload in system.not_on:
        return Run(workload, system.name, problem=f"left out: {system.why}")
    # Short, as the path of a socket may not be long.
    folder = Path(tempfile.mkdtemp(prefix="peers-"))
    try:
        out = folder / "said.json"
        own = {"TMPDIR": str(folder), "RAY_TMPDIR": str(folder), "FLWR_HOME": str(folder / "flwr")}
        given = {"workload": workload, "rounds": rounds, "data": data, "out": out, "variant": system.variant}
        command = [str(python), str(HERE / system.script)]
        command += [f"--{name}={value}" for name, value in given.items()] + [f"--began={time.monotonic()}"]
        ended = watch(command, {**os.environ, **SETTINGS, **own}, folder, timeout_s)
        if ended.code is None:
            return Run(workload, system.name, problem=f"took more than {timeout_s:g} s; its last lines:\n{ended.last_lines}")
        if ended.code != 0 or not out.is_file():
            said = f"ended with {ended.code}" if ended.code else "said nothing"
            return Run(workload, system.name, problem=f"{said}: {ended.last_lines.rpartition(chr(10))[2]}\n{ended.last_lines}")
        said = json.loads(out.read_text())
        times = said["first_round_s"], said["import_s"], tuple(said["round_s"])
        return Run(workload, system.name, *times, ended.peak_bytes / 1e6, said["accuracy"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def report(runs: Sequence[Run], repeats: int, name: str) -> None:
    """The table, the verdicts, the reasons of what is missing; all of it to benchmarks/out."""
    rows = medians(runs)
    shown, judged = cells(rows), verdicts(rows)
    print(f"\n{text(shown)}\n\n{text(judged)}")
    for row in rows:
        if row.problem:
            print(f"\nNOT MEASURED, or not in every run: {row.system} on {row.workload}: {row.problem}")
    note = (
        f"medians of up to {repeats} runs, each the median of its rounds after the first; memory: peak of the family's summed Pss"
    )
    write(name, shown, note)
    write(f"{name}-verdicts", judged, note)
    print(f"\nwritten to {write(f'{name}-runs', [run._asdict() for run in runs], note).parent}")


def _short(run: Run) -> str:
    if run.problem:
        return "FAILED: " + run.problem
    later = f", then {min(run.round_s):.3f} to {max(run.round_s):.3f} s a round" if run.round_s else ""
    return f"first round after {run.first_round_s:.2f} s{later}, {run.peak_mb:,.0f} MB, accuracy {run.accuracy:.3f}"


def _listed(given: str) -> list[str]:
    return [part.strip() for part in given.split(",") if part.strip()]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default=list(DEFAULT), help=",".join(DEFAULT), type=_listed)
    parser.add_argument("--only", default=[], help="systems whose names begin so, e.g. atoll,pfl", type=_listed)
    parser.add_argument("--ours", default=list(COMPUTE), help="Atoll's ways to compute: eager,traced,stacked", type=_listed)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each system, in turn")
    parser.add_argument("--rounds", type=int, help="rounds a run, instead of each workload's own number")
    parser.add_argument("--timeout-s", type=float, default=1200.0, help="for one run")
    parser.add_argument("--data", type=Path, help="another file of images, in the form of images.py")
    parser.add_argument("--quick", action="store_true", help="one run of two rounds each: does everything work?")
    options = parser.parse_args()
    if options.quick:
        options.repeats = 1
    if odd := set(options.workloads) - set(WORKLOADS):
        parser.error(f"--workloads {','.join(sorted(odd))}: there are {', '.join(WORKLOADS)}")
    return options


def _say(what: str) -> None:
    print(f"==> {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
