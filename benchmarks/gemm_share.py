"""The share of the machine's measured GEMM peak that each engine and way to compute reaches in training.

The peak is the best that `torch.mm` of large squares does here, in float32 and bfloat16, on one thread and on two. The
FLOPs of a step are those of its matrix products (see products.py; checked against torch's own count), so activations,
losses, optimisers, indexing and dispatch all count as time lost. A batch of 10 makes products of 10 rows, which read a
weight for every 10 rows of work: what these reach at best is a second reference, and so are the model's own products
with nothing around them ("products alone").
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import products as count
import torch
from lora_cohort import known_ways
from lora_setting import MODEL, RANK, SMALL, adapted, small_llama, speakers
from products import Product
from results import publish, verdict, write
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from atoll import rng, tree
from atoll.data.examples import Tensors, batches
from atoll.engines.processes import processes
from atoll.engines.serial import serial
from atoll.local.adamw import adamw
from atoll.local.binding import binding
from atoll.local.sgd import sgd
from atoll.models.cnn import cnn
from atoll.models.mlp import mlp
from atoll.models.transformer import transformer
from atoll.tasks.classification import classification
from atoll.tasks.next_token import next_token
from atoll.types import Assignment, Batch, ClientId, Examples, Local, Task, Update

WORKERS = 2
COUNT_WITHIN = 0.01  # of torch's own count of a step
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Rounds = Callable[[], float]  # seconds of one round


class Case(NamedTuple):
    """A model in training."""

    name: str
    dtype: str  # of the products
    task: Task
    local: Local[Any]
    clients: dict[ClientId, dict[str, Examples]]
    products: list[Product]
    lr: float
    adam: bool


def best_s(run: Callable[[], object], at_least_s: float) -> float:
    """The fastest of as many runs as fit in that time, at least 3, after one that warms up."""
    run()
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < at_least_s:
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return min(taken)


def mm_flops_s(m: int, k: int, n: int, dtype: torch.dtype, at_least_s: float, stack: int = 1) -> float:
    """FLOP/s of one product (m x k) (k x n), its operands in the nearest cache that holds them."""
    a, b = torch.randn(stack, m, k).to(dtype), torch.randn(stack, k, n).to(dtype)
    out = torch.empty(stack, m, n, dtype=dtype)
    inner = max(1, int(2e6 / (m * k * n * stack)))  # so that a clock's reading is small beside it
    if stack == 1:
        a, b, out = a[0], b[0], out[0]
    product = torch.mm if stack == 1 else torch.bmm

    def run() -> None:
        for _ in range(inner):
            product(a, b, out=out)

    return 2 * m * k * n * stack * inner / best_s(run, at_least_s)


def peaks(sizes: Sequence[int], at_least_s: float) -> dict[str, float]:
    """FLOP/s of this process at its number of threads: the best square of each dtype, and the best product of 10 rows."""
    found: dict[str, float] = {}
    for name, dtype in DTYPES.items():
        found[f"{name} squares"] = max(mm_flops_s(n, n, n, dtype, at_least_s) for n in sizes)
        shapes = [(k, n) for k in (200, 256, 512, 784, 1024) for n in (200, 256, 512, 1024)]
        found[f"{name} 10 rows"] = max(mm_flops_s(10, k, n, dtype, at_least_s / 10) for k, n in shapes)
    return found


def measured_peaks(threads: int, quick: bool) -> dict[str, float]:
    """`peaks` in a process of its own, so that no thread pool of it is forked into a worker."""
    command = [sys.executable, __file__, f"--threads={threads}", *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def alone_s(products: Sequence[Product], dtype: torch.dtype, at_least_s: float) -> float:
    """Seconds of a step's products with nothing around them: forward, and the gradients of either side."""
    spent, known = 0.0, dict[tuple[int, ...], float]()
    for p in products:
        shapes = [(p.m, p.k, p.n)] + [(p.m, p.n, p.k)] * p.left + [(p.k, p.m, p.n)] * p.right
        for m, k, n in shapes:
            at = (m, k, n, p.stack)
            if at not in known:
                known[at] = 2 * m * k * n * p.stack / mm_flops_s(m, k, n, dtype, at_least_s, p.stack)
            spent += known[at] * p.times
    return spent


def clients_of(columns: Callable[[torch.Generator], Batch], number: int) -> dict[ClientId, dict[str, Examples]]:
    return {ClientId(f"c{i:03}"): {"train": Tensors(columns(rng.generator(0, "rows", i)))} for i in range(number)}


def cases(wanted: Sequence[str], quick: bool, folder: str) -> list[Case]:
    """The models of the table, with random data of the right shapes: what is learnt is not asked here."""
    found: list[Case] = []
    images, tokens = (20, 30) if quick else (60, 30)

    def pictures(dice: torch.Generator) -> Batch:
        return {"x": torch.randn(images, 1, 28, 28, generator=dice), "y": torch.randint(10, (images,), generator=dice)}

    def characters(dice: torch.Generator) -> Batch:
        return {"input_ids": torch.randint(128, (tokens, 64), generator=dice)}

    if "mlp" in wanted:
        task = classification(mlp())
        some = clients_of(pictures, 8 if quick else 48)
        found.append(Case("MLP 784-200-200-10, batch 10", "fp32", task, sgd(task, lr=0.01), some, count.of_mlp(), 0.01, False))
    if "cnn" in wanted:
        task = classification(cnn())
        some = clients_of(pictures, 4)
        found.append(Case("CNN 5x5 32-64-512, batch 10", "fp32", task, sgd(task, lr=0.01), some, count.of_cnn(), 0.01, False))
    if "transformer" in wanted:
        task = next_token(transformer())
        some, of = clients_of(characters, 4 if quick else 16), count.of_transformer(10, 64)
        found.append(Case("transformer 2 x 64, 10 x 64 characters", "fp32", task, sgd(task, lr=0.01), some, of, 0.01, False))
    if "lora" in wanted:
        model = small_llama(folder) if quick else MODEL
        small = count.Llama(*SMALL.values()) if quick else count.Llama()
        for dtype in DTYPES:
            task = adapted(model, dtype)
            own = speakers(model, 4, 4, 64)
            name = f"{'small Llama' if quick else 'SmolLM2-135M'} LoRA {dtype}, 2 x 64 tokens"
            local = adamw(task, lr=1e-4, batch_size=2)
            found.append(Case(name, dtype, task, local, own, count.of_lora(2, 64, RANK, small), 1e-4, True))
    return found


def counted(case: Case) -> int:
    """FLOPs of a step as torch counts them while it is computed, attention as the products that it is."""
    params = [p for p in case.task.module.parameters() if p.requires_grad]
    batch = next(iter(batches(next(iter(case.clients.values()))["train"], case.local.batching, 0)))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        torch.autograd.grad(case.task.loss(case.task.forward(case.task.module, batch), batch), params)
    return int(counter.get_total_flops())


def bare(case: Case) -> Rounds:
    """What a person would write: the module, torch.optim, a loop over clients and batches."""
    module, task = case.task.module, case.task
    params = [p for p in module.parameters() if p.requires_grad]
    start, data = [p.detach().clone() for p in params], [p.data for p in params]

    def run() -> float:
        binding(module).restore()
        began = time.perf_counter()
        for client, splits in case.clients.items():
            torch._foreach_copy_(data, start)
            optimiser: Any = torch.optim.AdamW(params, lr=case.lr) if case.adam else torch.optim.SGD(params, lr=case.lr)
            for batch in batches(splits["train"], case.local.batching, rng.seed(0, client)):
                optimiser.zero_grad()
                torch.autograd.backward(task.loss(task.forward(module, batch), batch))
                optimiser.step()
        return time.perf_counter() - began

    return run


def over(case: Case, engine: Any) -> Rounds:
    """A round through an engine: every client's assignment, until the last update."""
    start = tree.pack(binding(case.task.module).state())

    def run() -> float:
        began = time.perf_counter()
        engine.submit([Assignment(0, c, "train", start, rng.seed(0, c)) for c in case.clients])
        for answer in engine.results(3600.0):
            if not isinstance(answer, Update):
                raise SystemExit(f"{case.name}: client {answer.client} failed: {answer.reason}")
            engine.acknowledge(answer)
        return time.perf_counter() - began

    return run


def contenders(case: Case, ways: Sequence[str]) -> tuple[dict[str, tuple[int, Rounds]], list[Any]]:
    """Name -> (threads in all, a round), and the engines to close."""
    runs: dict[str, tuple[int, Rounds]] = {"bare loop": (1, bare(case))}
    engines: list[Any] = []
    many: Any = processes
    takes_way = "compute" in inspect.signature(many).parameters
    for way in ways:
        named: Any = way
        engines.append(serial({"train": case.local}, case.clients, compute=named))
        runs[f"serial, {way}"] = (1, over(case, engines[-1]))
    for way in ways:
        if way != "eager" and not takes_way:
            print(f"skipped: processes, {way}: the engine takes no way to compute yet")
            continue
        engines.append(many({"train": case.local}, case.clients, workers=WORKERS, **({"compute": way} if takes_way else {})))
        runs[f"processes, {WORKERS} workers, {way}"] = (WORKERS, over(case, engines[-1]))
    return runs, engines


def shares(
    case: Case, ways: Sequence[str], peak: dict[int, dict[str, float]], repeats: int, at_least_s: float
) -> list[dict[str, Any]]:
    """The rows of one model: seconds of a step, FLOP/s, share of the peak."""
    runs, engines = contenders(case, ways)
    spent: dict[str, list[float]] = {name: [] for name in runs}
    steps = sum(
        math.ceil(len(own["train"]) / (case.local.batching.batch_size or len(own["train"]))) for own in case.clients.values()
    )
    try:
        for number in range(repeats + 1):  # the first round warms up: workers fork, programs are captured
            for name, (_, run) in runs.items():  # in turn, so that a slow spell of the machine hits all
                seconds = run()
                if number:
                    spent[name].append(seconds)
    finally:
        for engine in engines:
            engine.close()
    flops = count.step_flops(case.products)
    step_s = {name: (runs[name][0], statistics.median(taken) / steps) for name, taken in spent.items()}
    ten_rows, all_ten = peak[1][f"{case.dtype} 10 rows"], all(p.m == 10 for p in case.products)
    step_s["products alone, torch.mm"] = (1, alone_s(case.products, DTYPES[case.dtype], at_least_s))
    return [
        {
            "model": case.name,
            "": name,
            "ms a step": round(1e3 * seconds, 4),
            "GFLOP/s": round(flops / seconds / 1e9, 2),
            "share of the peak (%)": round(100 * flops / seconds / peak[threads][f"{case.dtype} squares"], 2),
            "of 10-row products (%)": round(100 * flops / seconds / threads / ten_rows, 2) if all_ten else None,
        }
        for name, (threads, seconds) in step_s.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["mlp", "cnn", "transformer", "lora"])
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each, at least 3")
    parser.add_argument("--quick", action="store_true", help="a smoke test: small rounds, a small random Llama")
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads or 1)
    at_least_s, repeats = (0.02, 3) if options.quick else (0.5, max(3, options.repeats))
    if options.threads:
        print(json.dumps(peaks((1024,) if options.quick else (1024, 1536, 2048), at_least_s)))
        return
    suffix = "_quick" if options.quick else ""
    peak = {threads: measured_peaks(threads, options.quick) for threads in (1, WORKERS)}
    rows = [
        {
            "torch.mm": what,
            "1 thread (GFLOP/s)": round(peak[1][what] / 1e9, 1),
            "2 threads (GFLOP/s)": round(peak[2][what] / 1e9, 1),
        }
        for what in peak[1]
    ]
    publish(
        f"gemm_peak{suffix}", rows, "the best of squares of 1,024 to 2,048, and of (10 x k)(k x n), k and n from 200 to 1,024"
    )
    with tempfile.TemporaryDirectory() if options.quick else nullcontext("") as folder:
        chosen = cases(options.models, options.quick, folder)
    counts, found = list[dict[str, Any]](), list[dict[str, Any]]()
    ways = known_ways()
    for case in chosen:
        ours, theirs = count.step_flops(case.products), counted(case)
        off = abs(ours - theirs) / theirs
        row = {"model": case.name, "MFLOP a step": round(ours / 1e6, 3), "torch counts": round(theirs / 1e6, 3)}
        row |= {f"within {COUNT_WITHIN:.0%}": verdict(off, at_most=COUNT_WITHIN)}
        counts.append(row | {"3 x forward": round(count.three_forward_flops(case.products) / 1e6, 3)})
    publish(f"gemm_counts{suffix}", counts, "the products that a step needs, forward and backward; see benchmarks/products.py")
    note = f"medians of {repeats} rounds, in turn; one thread a process; the peak of as many threads as the row has processes"
    for case in chosen:  # a table each: whoever stops here has those before
        found += shares(case, ways, peak, repeats, at_least_s / 5)
        publish(f"gemm_share{suffix}", [row for row in found if row["model"] == case.name], note)
        gc.collect()
    write(f"gemm_share{suffix}", found, note)


if __name__ == "__main__":
    main()
