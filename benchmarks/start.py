"""How long `atoll` takes to start: the whole process, from exec to exit, for `--help` and for `check` of each example."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from results import publish, verdict

ROOT = Path(__file__).parents[1]
ATOLL = str(Path(sys.executable).parent / "atoll")
TARGETS_S = {"--help": 0.3, "check": 1.5}


def seconds(command: list[str], times: int) -> list[float]:
    """Wall time of each of `times` runs, after one that warms the file cache."""
    taken = []
    for _ in range(times + 1):
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        taken.append(time.perf_counter() - start)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return taken[1:]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--times", type=int, default=7, help="runs of each command, at least 5")
    times = max(5, options.parse_args().times)
    jobs = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("examples/*.toml"))]
    rows = []
    for arguments in [["--help"], *(["check", job] for job in jobs)]:
        taken = seconds([ATOLL, *arguments], times)
        median, target = statistics.median(taken), TARGETS_S[arguments[0]]
        rows.append(
            {
                "command": " ".join(["atoll", *arguments]),
                "median_s": round(median, 4),
                "fastest_s": round(min(taken), 4),
                "slowest_s": round(max(taken), 4),
                "target_s": target,
                "": verdict(median, at_most=target),
            }
        )
    bare = seconds([sys.executable, "-c", "pass"], times)
    rows.append({"command": "python -c pass", "median_s": round(statistics.median(bare), 4)})
    publish("start", rows, note=f"Whole process, median of {times}; below, Python alone.")


if __name__ == "__main__":
    main()
