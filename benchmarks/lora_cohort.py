"""LoRA clients of one frozen base, 1 to 16 of them: tokens a second and peak memory, one after another and batched.

Each case (a way to compute, a number of clients) is a process of its own, so that its peak is its own, and a case is
measured in several processes, in turn with the others. The base should be held once, whatever the number of clients:
a peak is set beside what the process held before training plus, a client computed at once, what one client's training
takes, plus an adapter a client. Every way must end in eager's adapters.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from aggregation_memory import forget_peak, memory_mib
from lora_setting import MODEL, adapted, small_llama, speakers
from results import publish, verdict
from safetensors.torch import load_file, save_file

from atoll import rng, tree
from atoll.compute.choice import compute_by
from atoll.engines.serial import serial
from atoll.errors import AtollError
from atoll.local.adamw import adamw
from atoll.local.binding import binding
from atoll.types import Assignment, Tree, Trip, Update

WAYS = ["eager", "traced", "stacked"]
# How far a way's adapters may be from eager's, as a share of how far they were trained: AdamW divides by the root of v,
# which makes much of a rounding in a gradient near 0, and a bfloat16 base rounds each product to 8 bits.
APART = {"fp32": 2e-2, "bf16": 0.5}
NOT_SLOWER = 1.0  # tokens a second, over one client after another
HELD_ONCE = 1.1  # of the memory that one base accounts for: allocators keep some


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One case in this process: a round that warms up, and a round that is timed; the last update of each client is saved."""
    torch.set_num_threads(options.threads)
    way: Any = options.way
    task = adapted(options.model, options.dtype)
    clients = speakers(options.model, options.count, options.batch_size * options.steps, options.length)
    local = adamw(task, lr=1e-3, batch_size=options.batch_size, steps=options.steps)
    start = tree.pack(binding(task.module).state())
    engine = serial({"train": local}, clients, threads=options.threads, compute=way)
    base = [p for p in task.module.parameters() if not p.requires_grad]
    for p in base:
        p.sum()  # a mapped file is in memory when it has been read
    gc.collect()
    forget_peak()
    floor = memory_mib("VmRSS")
    seconds, found = 0.0, dict[str, Tree]()
    for number in range(2):
        began = time.perf_counter()
        engine.submit([Assignment(number, c, "train", start, rng.seed(0, number, c)) for c in clients])
        for answer in engine.results(3600.0):
            if not isinstance(answer, Update):
                raise SystemExit(f"client {answer.client} failed: {answer.reason}")
            if number:
                found[answer.client] = tree.map(torch.clone, answer.tree)  # one adapter a client, as a server folds them
            engine.acknowledge(answer)
        seconds = time.perf_counter() - began
    peak = memory_mib("VmHWM")
    client = next(iter(clients))
    first = Assignment(2, client, "train", start, 0)
    at_once = compute_by(way).ready(Trip(first, local, clients[client]["train"], {}))
    save_file({f"{c}/{name}": x.contiguous() for c, own in found.items() for name, x in own.items()}, options.save)
    return {
        "seconds": seconds,
        "at_once": min(at_once, options.count),
        "floor_mib": floor,
        "peak_mib": peak,
        "base_mib": sum(p.numel() * p.element_size() for p in base) / 2**20,
        "adapter_mib": tree.size_bytes(start) / 2**20,
    }


def apart(eager: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """How far the adapters are from eager's, as a share of how far those were trained; the largest of all clients."""
    names: dict[str, list[str]] = {}
    for name in eager:
        names.setdefault(name.partition("/")[0], []).append(name)
    shares = []
    for own in names.values():
        off = torch.cat([(eager[name] - other[name]).flatten() for name in own]).norm()
        shares.append(float(off / torch.cat([eager[name].flatten() for name in own]).norm()))
    return max(shares)


def in_process(options: argparse.Namespace, way: str, count: int, save: Path) -> dict[str, Any]:
    """`measure` of one case in a fresh process."""
    given = {name: getattr(options, name) for name in ("model", "dtype", "length", "batch_size", "steps", "threads")}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    command = [sys.executable, __file__, *flags, f"--way={way}", f"--count={count}", f"--save={save}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{way}, {count} clients: {done.stderr.strip() or done.stdout.strip()}")
    for line in done.stderr.splitlines():
        if line.strip():
            print(f"{way}, {count} clients: {line}")  # why a way fell back, say
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def known_ways() -> list[str]:
    """The ways that there are; for each of the others, a line that says why not."""
    found = []
    for way in WAYS:
        named: Any = way
        try:
            compute_by(named)
        except AtollError as error:
            print(f"skipped: compute {way!r}: {error}")
        else:
            found.append(way)
    return found


def table(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All cases, in turn, `repeats` times; a row each."""
    ways = known_ways()
    cases = [(way, count) for count in options.clients for way in ways]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {case: [] for case in cases}
    try:
        for number in range(options.repeats):
            for way, count in cases:
                one = in_process(options, way, count, folder / f"{way}-{count}.safetensors")
                found[way, count].append(one)
                print(f"==> run {number + 1} of {options.repeats}: {way}, {count} clients: {one['seconds']:.2f} s", flush=True)
    except KeyboardInterrupt:
        print("stopped: the table is of what was measured until here")
    counts = [count for count in options.clients if all(found[way, count] for way in ways)]
    if not counts:
        raise SystemExit("stopped before any number of clients was measured in every way")
    cases = [(way, count) for way, count in cases if count in counts]
    rows = []
    tokens = options.batch_size * options.steps * options.length
    alone = statistics.median(x["peak_mib"] - x["floor_mib"] for x in found["eager", counts[0]]) / counts[0]
    for way, count in cases:
        own, eager = found[way, count], found["eager", count]
        speed = count * tokens / statistics.median(x["seconds"] for x in own)
        ratio = statistics.median(e["seconds"] / x["seconds"] for e, x in zip(eager, own, strict=False))
        peak, floor = (statistics.median(x[key] for x in own) for key in ("peak_mib", "floor_mib"))
        at_once = max(x["at_once"] for x in own)
        expected = floor + at_once * alone + count * own[0]["adapter_mib"]
        row = {"clients": count, "compute": way, "at once": at_once, "tokens/s": round(speed, 1)}
        row["over eager"] = None if way == "eager" else round(ratio, 3)
        row["not slower"] = "" if way == "eager" else verdict(ratio, at_least=NOT_SLOWER)
        row |= {"peak (MiB)": round(peak), "before training": round(floor), "of it base": round(own[0]["base_mib"])}
        row |= {"one base accounts for": round(expected), "held once": verdict(peak, at_most=HELD_ONCE * expected)}
        if way != "eager":
            far = apart(*(load_file(folder / f"{w}-{count}.safetensors") for w in ("eager", way)))
            allowed = APART[options.dtype]
            row["as eager"] = f"to {far:.1g}, at most {allowed:g}: {verdict(far, at_most=allowed)}"
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL, help="a known name or a folder")
    parser.add_argument("--dtype", default="fp32", choices=list(APART), help="of the base")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--length", type=int, default=64, help="tokens of a block")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="a client")
    parser.add_argument("--repeats", type=int, default=3, help="processes a case")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a smoke test on a small random model, 1 and 4 clients")
    for hidden in ("--way", "--count", "--save"):
        parser.add_argument(hidden, type=int if hidden == "--count" else str, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        about = options.model
        if options.quick:
            about, options.model, options.clients = "a random Llama", small_llama(f"{folder}/model"), [1, 4]
        options.clients = sorted(options.clients)
        rows = table(options, Path(folder))
    note = (
        f"{about}, {options.dtype} base, LoRA on queries and values, AdamW, {options.batch_size} x {options.length} tokens, "
        f"{options.steps} steps a client, {options.threads} thread(s); medians of {options.repeats} processes, in turn"
    )
    name = f"lora_cohort_{options.dtype}"
    publish(f"{name}_quick" if options.quick else name, rows, note)


if __name__ == "__main__":
    main()
