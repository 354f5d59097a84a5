"""Peak memory of aggregating 200 updates of a 25-million-parameter model, above what the process held before.

Every update is 100 MB in float32, made anew by the client as in a deployed run, and answered out of order in blocks of
four, so that the driver must hold some back. One process a case, so that a peak belongs to its case.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results import publish, verdict

CLIENTS, NAMES, SHAPE = 200, 100, (500, 500)  # 25 million parameters
MODEL_MIB = NAMES * SHAPE[0] * SHAPE[1] * 4 / 2**20


def memory_mib(what: str) -> float:
    """ "VmRSS": what the process holds now; "VmHWM": the most it held since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(in_order: bool) -> dict[str, Any]:
    """Peak above the floor in MiB, through the whole driver: submit, journal, fold, finish."""
    import torch

    from atoll import tree
    from atoll.aggregators.mean import mean
    from atoll.flight import Flight
    from atoll.policy import synchronous
    from atoll.round import Shell, ask
    from atoll.store.journal import FileJournal
    from atoll.types import Answer, Assignment, Event, Request, Update

    torch.set_num_threads(1)
    params = tree.pack({f"w{i}": torch.zeros(SHAPE) for i in range(NAMES)})

    class Clients:
        """Answers each assignment with a fresh update when it is asked for, the last of each four first."""

        def __init__(self) -> None:
            self.queue: list[Assignment] = []

        def available(self, clients: Any) -> Any:
            return clients

        def submit(self, assignments: Any) -> None:
            new = list(assignments)
            blocks = [new[i : i + 4] for i in range(0, len(new), 4)]
            self.queue += new if in_order else [a for block in blocks for a in reversed(block)]

        def results(self, timeout_s: float) -> Any:
            while self.queue:
                a = self.queue.pop(0)
                yield self.answer(a)

        def answer(self, a: Assignment) -> Answer:
            update = tree.map(lambda x: torch.full_like(x, float(a.client)), params)
            return Update(a.round, a.client, a.work, update, 1.0, {})

        def acknowledge(self, update: Update) -> None: ...
        def refuse(self, answer: Answer) -> None: ...
        def cancel(self, round: int, work: str) -> None: ...
        def started(self, assignment: Assignment) -> bool:
            return True

        def now(self) -> float:
            return 0.0

        def close(self) -> None: ...

    class Quiet:
        def emit(self, event: Event) -> None: ...

    clients = [str(i) for i in range(CLIENTS)]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        engine, policy = Clients(), synchronous()
        journal = FileJournal(folder)
        journal.begin(0)
        gc.collect()
        forget_peak()
        floor = memory_mib("VmRSS")
        request = Request("train", clients, lambda _: params, mean())  # type: ignore[arg-type]
        reduced = ask(request, 0, policy, Flight(policy, engine), Shell(engine, journal, Quiet()), 0)
        return {"peak_mib": memory_mib("VmHWM") - floor, "mean": float(reduced.tree["w0"][0, 0])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=["in order", "out of order"])
    case = parser.parse_args().case
    if case:
        print(json.dumps(measure(case == "in order")))
        return
    rows = []
    for case in ("in order", "out of order"):
        told = subprocess.run([sys.executable, __file__, "--case", case], capture_output=True, text=True, check=True)
        found = json.loads(told.stdout.splitlines()[-1])
        models = found["peak_mib"] / MODEL_MIB
        rows.append(
            {
                "updates arrive": case,
                "peak above the floor (MiB)": round(found["peak_mib"], 1),
                "in models": round(models, 2),
                "target: under 3 models": verdict(models, at_most=3.0),
                "mean of 0..199 (must be 99.5)": round(found["mean"], 4),
            }
        )
    publish("aggregation_memory", rows, f"{CLIENTS} updates of {MODEL_MIB:.0f} MiB")


if __name__ == "__main__":
    main()
