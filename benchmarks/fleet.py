"""A large fleet in virtual time: rounds a second and peak memory, by the clients that are registered; 1,000 at work in a round.

Each size is a process of its own, so that one's peak is not another's. Clients are those of Synthetic(alpha, beta), made when
they work; devices are lognormal and always there, and phones, of which about one in ten is there at a time.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

from results import publish, verdict

SIZES = (("lognormal", 1_000), ("lognormal", 10_000), ("lognormal", 100_000), ("phones", 100_000))
GROWTH_MB = 50.0  # that 99,000 more registered clients may cost: their names, and the order in which they are asked


def measure(fleet: str, clients: int, active: int, rounds: int) -> dict[str, Any]:
    """One federation in this process, its first round apart as the one that warms up."""
    import torch

    from atoll.algorithms.fedavg import fedavg
    from atoll.data.synthetic import synthetic
    from atoll.federation import Federation
    from atoll.fleets.phones import phones
    from atoll.fleets.steady import lognormal
    from atoll.local.sgd import sgd
    from atoll.models.mlp import mlp
    from atoll.policy import synchronous
    from atoll.tasks.classification import classification

    torch.set_num_threads(1)
    torch.manual_seed(0)
    ends: list[float] = []
    clocks: list[float] = []

    class Clock:
        def emit(self, event: Any) -> None:
            if event.kind == "round":
                clocks.append(event.metrics["clock_s"])

    data, task = synthetic(clients=clients, mean_examples=30.0), classification(mlp(60, [32], 10))
    devices = phones() if fleet == "phones" else lognormal()
    federation = Federation(task, data, fedavg(sgd(task, lr=0.1, batch_size=10)), synchronous(active), fleet=devices)
    before_mb = peak_mb()
    result = federation.run(rounds + 1, sinks=[Clock()], each_round=lambda n, _: ends.append(time.perf_counter()))
    return {
        "fleet": fleet,
        "registered": clients,
        "active": active,
        "rounds/s": rounds / (ends[-1] - ends[0]),
        "MB before": round(before_mb),
        "peak MB": round(peak_mb()),
        "virtual s a round": round(clocks[-1] / (rounds + 1), 1),
        "held-out loss": round(result.metrics["loss"], 4),
    }


def peak_mb() -> float:
    """Of this process, so far."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--active", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("FLEET", "CLIENTS"), help="measure one size here and print it as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], int(arguments.one[1]), arguments.active, arguments.rounds)))
        return
    rows = []
    for fleet, clients in SIZES:
        command = [sys.executable, __file__, "--one", fleet, str(clients)]
        command += ["--active", str(arguments.active), "--rounds", str(arguments.rounds)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout))
    for row in rows:
        more_mb = row["peak MB"] - rows[0]["peak MB"]
        row["more than the smallest"] = f"{more_mb:.0f} MB, {verdict(more_mb, at_most=GROWTH_MB)}"
    publish(
        "fleet", rows, f"{arguments.active:,} clients at work in a round; target: at most {GROWTH_MB:g} MB more than the smallest"
    )


if __name__ == "__main__":
    main()
