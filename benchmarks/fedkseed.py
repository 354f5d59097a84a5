"""FedKSeed on SmolLM2-135M: bytes a round, one SHA-256 at the server, the clients and a newcomer, and memory beside inference.

Two clients, two rounds of six steps of 64 tokens, K = 4096, all parameters tuned; then a client that never took part is
asked, and makes its weights from scalars alone. Bytes are those of whole frames. Memory is measured in processes of
their own: the private (anonymous) memory at its peak, since the weights of the file are mapped and shared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lora_setting import MODEL, small_llama, speakers
from results import publish, verdict

from atoll.algorithms.fedkseed import State, fedkseed, replay
from atoll.engines.serial import serial
from atoll.local.binding import binding
from atoll.local.directions import Directions, sha256
from atoll.local.zeroth_order import INDEX, patch
from atoll.policy import Policy
from atoll.round import RunState, Shell, run
from atoll.store.journal import Ephemeral
from atoll.store.memories import Kept
from atoll.tasks.causal_lm import causal_lm
from atoll.types import Algorithm, Assignment, ClientId, Event, Examples, Task, Tree, Update
from atoll.wire import frame

K, STEPS, LENGTH, LR, MOST_BYTES = 4096, 6, 64, 3e-7, 18_000
PAPER_STEPS = 200
MEMORY_WITHIN = 1.2  # of inference's peak


class Watched:
    """What each client's module holds when its work begins, and what a round costs it."""

    def __init__(self, algorithm: Algorithm[State], task: Task) -> None:
        self.held: dict[tuple[int, str], str] = {}
        self.bytes: dict[tuple[int, str], float] = {}
        local = algorithm.local["train"]

        def init(assignment: Assignment, memory: Tree) -> Any:
            carry = local.init(assignment, memory)
            self.held[assignment.round, assignment.client] = sha256(dict(task.module.named_parameters()))
            return carry

        self.algorithm = algorithm._replace(local={"train": local._replace(init=init)})

    def emit(self, event: Event) -> None:
        if event.kind == "update" and event.client is not None:
            self.bytes[event.round, event.client] = event.metrics["bytes_down"] + event.metrics["bytes_up"]


def scenario(model: str, draw: Any) -> list[Mapping[str, Any]]:
    """The rows of one run."""
    task = causal_lm(model, dtype="fp32")
    clients = speakers(model, 3, STEPS, LENGTH)
    *first, newcomer = sorted(clients)
    watched = Watched(fedkseed(task, LR, candidates=K, steps=STEPS, draw=draw), task)
    w0 = binding(task.module).state()
    state = RunState(0, watched.algorithm.init(w0))
    began, at_server = time.perf_counter(), dict[int, str]()
    for asked, until in ((first, 2), ([newcomer], 3)):
        engine = serial(watched.algorithm.local, clients, Kept())
        shell = Shell(engine, Ephemeral(), watched)
        for after in run(state, watched.algorithm, Policy(), asked, until, 0, shell):
            at_server[after.round] = sha256(watched.algorithm.params(after.algorithm))
            state = after
    seconds = time.perf_counter() - began
    replayed = sha256(replay(w0, state.algorithm.g, Directions(K, 0, draw), LR))
    same = [digest == at_server[round] for (round, _), digest in watched.held.items() if round] + [replayed == at_server[3]]
    most = max(watched.bytes.values())
    dense = largest_bytes()
    return [
        {"what": f"{draw}: bytes a round and client", "value": most, "target": f"<= {MOST_BYTES:,}"}
        | {"verdict": verdict(most, at_most=MOST_BYTES)},
        {"what": f"{draw}: all of G and {PAPER_STEPS} steps", "value": dense, "target": f"<= {MOST_BYTES:,}"}
        | {"verdict": verdict(dense, at_most=MOST_BYTES)},
        {"what": f"{draw}: SHA-256 as the server's", "value": sum(same), "target": f"{len(same)}"}
        | {"verdict": verdict(sum(same), at_least=len(same))},
        {"what": f"{draw}: seconds", "value": seconds, "target": "", "verdict": ""},
    ]


def largest_bytes() -> int:
    """Both frames of a round when every entry of G is in use, and clients take as many steps as in the paper."""
    client, metrics = ClientId("client-00"), {"loss": 1.0, "seconds": 1.0, "examples": 200.0, "steps": 200.0}
    pairs = {"at": torch.zeros(PAPER_STEPS, dtype=INDEX), "h": torch.zeros(PAPER_STEPS)}
    down = frame.size(Assignment(1000, client, "train", patch(torch.ones(K), None, 1), 2**62))
    return down.total + frame.size(Update(1000, client, "train", pairs, 200.0, metrics)).total


def anonymous_mb() -> float:
    """Private memory of this process now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e3


def peak_mb(model: str, what: str) -> float:
    """The most private memory in three batches of inference, or in a client's work of FedKSeed."""
    import threading

    task, clients = causal_lm(model, dtype="fp32"), speakers(model, 1, STEPS, LENGTH)
    (client, splits), most, done = next(iter(clients.items())), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], anonymous_mb())

    watcher = threading.Thread(target=watch)
    bound = binding(task.module)
    if what == "inference":
        held = {name: x.clone() for name, x in bound.state().items()}  # a client's own weights, not the file's
        bound.bind(held, {})
        watcher.start()
        for row in range(3):
            with torch.no_grad():
                batch = splits["train"].take(torch.tensor([row]))
                task.loss(task.forward(task.module, batch), batch)
    else:
        work_once(task, client, splits, watcher)
    done.set()
    watcher.join()
    return most[0]


def work_once(task: Task, client: ClientId, splits: Mapping[str, Examples], watcher: Any) -> None:
    """A client's first assignment; the server's half is made small beforehand."""
    import gc

    from atoll.round import work

    algorithm = fedkseed(task, LR, candidates=K, steps=2, draw="rademacher")
    sent = patch(torch.zeros(K), None, algorithm.init(binding(task.module).state()).base)
    gc.collect()
    watcher.start()
    answer, _ = work(Assignment(0, client, "train", sent, 1), algorithm.local["train"], splits["train"], {})
    assert not hasattr(answer, "reason"), answer


def measured_mb(model: str, what: str) -> float:
    command = [sys.executable, __file__, "--measure", what, "--model", model]
    found: float = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="a small random model, nothing is fetched")
    arguments.add_argument("--measure", choices=["inference", "fedkseed"])
    arguments.add_argument("--model", default=MODEL)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    if given.measure:
        print(json.dumps(peak_mb(given.model, given.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = small_llama(folder) if given.quick else given.model
        rows = [row for draw in ("gaussian", "rademacher") for row in scenario(model, draw)]
        inference, tuning = measured_mb(model, "inference"), measured_mb(model, "fedkseed")
    ratio = tuning / inference
    rows += [
        {"what": "inference: peak private MB", "value": inference, "target": "", "verdict": ""},
        {"what": "a client's work: peak private MB", "value": tuning, "target": "", "verdict": ""},
        {"what": "of inference", "value": ratio, "target": f"<= {MEMORY_WITHIN}"}
        | {"verdict": verdict(ratio, at_most=MEMORY_WITHIN)},
    ]
    publish("fedkseed", rows, f"{Path(model).name}, K = {K}, {STEPS} steps of {LENGTH} tokens")


if __name__ == "__main__":
    main()
