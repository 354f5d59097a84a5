"""Pretraining over slow links: a character transformer from scratch on Shakespeare and the State of the Union, 4 workers.

Every way reads the same number of tokens, from the same first weights, and is judged on passages that nobody trains on.
Data-parallel AdamW, whose gradients cross the network at every step, is run again in this script; what the others lose and
save is against it. Bytes are those of whole frames, headers and checksums included, of all workers and rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from results import publish, verdict

from atoll import rng
from atoll.algorithms.data_parallel import data_parallel
from atoll.algorithms.diloco import diloco
from atoll.algorithms.fedavg import fedavg
from atoll.algorithms.sparseloco import sparseloco
from atoll.algorithms.streaming_diloco import streaming_diloco
from atoll.data.characters import Characters
from atoll.data.examples import Tensors
from atoll.data.shakespeare import shakespeare
from atoll.data.sotu import sotu
from atoll.data.text import Texts
from atoll.engines.serial import serial
from atoll.local.adamw import adamw
from atoll.local.binding import binding
from atoll.local.evaluate import evaluate
from atoll.models.transformer import transformer
from atoll.policy import Policy
from atoll.round import RunState, Shell, run, work
from atoll.store.journal import Ephemeral
from atoll.tasks.next_token import next_token
from atoll.transforms.broadcast import with_broadcast
from atoll.transforms.chain import chain
from atoll.transforms.compress.chunk_top_k import chunk_top_k
from atoll.transforms.compress.ecsq import ecsq
from atoll.transforms.compress.few_bits import few_bits
from atoll.transforms.compress.int4 import int4
from atoll.transforms.compress.int8 import int8
from atoll.transforms.pipe import pipe
from atoll.types import Algorithm, Assignment, ClientId, Dataset, Event, Task, Tree, Update

SEED = 0


class Setting(NamedTuple):
    """What all ways have in common."""

    workers: int
    steps: int  # of each worker
    batch: int  # blocks a worker and step
    lr: float
    warmup: int
    length: int  # tokens a block
    test: int  # held-out blocks

    def tokens(self) -> int:
        """Read in all."""
        return self.workers * self.steps * self.batch * self.length


class Way(NamedTuple):
    """One row of the table."""

    name: str
    make: Callable[[Task, Setting], Algorithm[Any]]
    every: int  # steps a round
    most: float | None = None  # loss over data-parallel's that the paper, or the issue, allows
    fewer: float | None = None  # times fewer bytes that are wanted


def inner(task: Task, s: Setting, steps: int, **options: Any) -> Any:
    """AdamW that goes on where it was."""
    return adamw(task, s.lr, s.batch, steps=steps, keep=True, **{**common(s), **options})


def common(s: Setting) -> dict[str, Any]:
    """What every AdamW is set to, at a worker or at the server: warm-up, then a cosine over all steps."""
    return {
        "b2": 0.95,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "schedule": "cosine",
        "schedule_steps": s.steps,
        "warmup_steps": s.warmup,
    }


def ways(h: int) -> list[Way]:
    """Data-parallel first: the others are compared with it. `h`: inner steps a round where whole float32 models are sent.

    Where less is sent a time, rounds come more often: 3 bits both ways an eighth of the steps. The papers' outer momentum is for
    rounds of hundreds of steps, and overshoots after a few: the outer step is the plain mean there. SparseLoCo's 64 of 4,096
    entries are for thousands of rounds; a run of so few has to send more of them.
    """
    often, sparse = max(h // 8, 1), max(h // 4, 1)
    down = chain("broadcast", [chunk_top_k(4096, 320), few_bits(2)])
    return [
        Way("data-parallel AdamW", lambda t, s: data_parallel(t, s.lr, s.batch, **common(s)), 1),
        Way(f"local SGD, averaged every {h}", lambda t, s: fedavg(inner(t, s, h), weights="uniform"), h),
        Way(f"DiLoCo, H = {h}", lambda t, s: diloco(inner(t, s, h), 0.7, 0.9), h, 0.02, 30),
        Way(
            f"DiLoCo, H = {often}, outer step 1, 3 bits both ways",
            lambda t, s: three_bits(diloco(inner(t, s, often), 1.0, 0.0)),
            often,
            0.02,
            30,
        ),
        Way(
            f"Streaming DiLoCo, one of 2 fragments every {sparse}, 4 bits",
            lambda t, s: pipe(streaming_diloco(inner(t, s, sparse), 2, 0.7, 0.9, alpha=0.5, overlap=1), int4()),
            sparse,
        ),
        Way(f"SparseLoCo, H = {sparse}", lambda t, s: sparseloco(inner(t, s, sparse), keep=256), sparse, 0.03),
        Way(
            f"SparseLoCo, H = {sparse}, sparse both ways",
            lambda t, s: with_broadcast(sparseloco(inner(t, s, sparse), keep=256), down),
            sparse,
            0.03,
            1000,
        ),
    ]


def three_bits(algorithm: Algorithm[Any]) -> Algorithm[Any]:
    """An entropy-coded step of half the RMS up, and in the steps down."""
    return with_broadcast(pipe(algorithm, ecsq(step=0.5)), ecsq(step=0.5))


def eight_bits(algorithm: Algorithm[Any]) -> Algorithm[Any]:
    """int8 up, and int8 steps down."""
    return with_broadcast(pipe(algorithm, int8()), int8())


class Bytes:
    """A sink that adds up what crossed the network, and keeps the training loss."""

    def __init__(self) -> None:
        self.down, self.up, self.loss = 0.0, 0.0, 0.0

    def emit(self, event: Event) -> None:
        if event.kind == "update":
            self.down += event.metrics["bytes_down"]
            self.up += event.metrics["bytes_up"]
        if event.kind == "reduced":
            self.loss = event.metrics["loss"]


def trained(way: Way, task: Task, start: Tree, data: Dataset, s: Setting, compute: Any = "traced") -> dict[str, Any]:
    """One run: what it cost, and how well the model does on what nobody trained on."""
    began, algorithm, seen = time.perf_counter(), way.make(task, s), Bytes()
    shell = Shell(serial(algorithm.local, data.clients, compute=compute), Ephemeral(), seen)
    state = RunState(0, algorithm.init(start))
    for after in run(state, algorithm, Policy(), list(data.clients), s.steps // way.every, SEED, shell):
        state = after
    loss = judged(task, algorithm.params(state.algorithm), data)
    return {
        "loss": loss,
        "train": seen.loss,
        "down": seen.down,
        "up": seen.up,
        "rounds": state.round,
        "seconds": time.perf_counter() - began,
    }


def judged(task: Task, params: Tree, data: Dataset) -> float:
    """Nats a token on the held-out blocks."""
    assert data.test is not None
    local = evaluate(task, 32)
    answer, _ = work(Assignment(0, ClientId("judge"), "evaluate", params, 0), local, data.test, {})
    binding(task.module).restore()
    assert isinstance(answer, Update), answer
    return answer.metrics["loss"]


def blocks(texts: Sequence[str], tokens: Any, length: int) -> torch.Tensor:
    """Texts joined by end marks, cut into blocks of `length` tokens, int64 (n, length)."""
    ids = torch.tensor([t for each in tokens(list(texts), add_special_tokens=True)["input_ids"] for t in each])
    return ids[: len(ids) // length * length].view(-1, length)


def real_text(tokens: Any, s: Setting, quick: bool) -> Dataset:
    """Both collections, dealt to the workers evenly at random; the held-out passages are those of all speakers."""
    both = [shakespeare(clients=8 if quick else None), sotu(clients=2 if quick else None)]
    train = [t for d in both for splits in d.clients.values() for t in texts_of(splits["train"])]
    test = [t for d in both for t in texts_of(d.test)]
    rows, held = blocks(train, tokens, s.length), blocks(test, tokens, s.length)
    order = rng.permutation(len(rows), SEED, "deal")
    parts = {ClientId(f"worker {i}"): {"train": Tensors({"input_ids": rows[order[i :: s.workers]]})} for i in range(s.workers)}
    chosen = rng.permutation(len(held), SEED, "held out")[: s.test]
    return Dataset("shakespeare and sotu", parts, Tensors({"input_ids": held[chosen]}))


def texts_of(examples: Any) -> Sequence[str]:
    """The texts of a split."""
    assert isinstance(examples, Texts)
    return examples.text


def alphabet() -> Characters:
    """What both collections are written in."""
    return Characters(map(chr, [10, *range(32, 127)]))


def compared(name: str, chosen: Sequence[Way], task: Task, data: Dataset, s: Setting, note: str) -> None:
    """All ways, one after another; the table."""
    start = {key: x.clone() for key, x in binding(task.module).state().items()}
    untrained = judged(task, start, data)
    size = sum(x.numel() for x in start.values())
    rows: list[dict[str, Any]] = [{"way": "before training", "held-out loss": round(untrained, 4)}]
    first: Mapping[str, Any] | None = None
    for way in chosen:
        found = trained(way, task, start, data, s)
        first = first or found
        more, both = found["loss"] / first["loss"] - 1, found["down"] + found["up"]
        fewer = (first["down"] + first["up"]) / both
        row = {
            "way": way.name,
            "held-out loss": round(found["loss"], 4),
            "over data-parallel": f"{more:+.2%}",
            "loss target": "" if way.most is None else f"+{way.most:.0%}: {verdict(more, at_most=way.most)}",
            "MB up": round(found["up"] / 1e6, 4),
            "MB both": round(both / 1e6, 4),
            "times fewer up": round(first["up"] / found["up"], 1),
            "times fewer": round(fewer, 1),
            "bytes target": "" if way.fewer is None else f"{way.fewer:,.0f}x: {verdict(fewer, at_least=way.fewer)}",
            "rounds": found["rounds"],
            "s": round(found["seconds"]),
        }
        print(row, flush=True)
        rows.append(row)
    told = (
        f"{s.workers} workers, {size:,} parameters, {s.tokens():,} tokens each way in {s.steps} steps of {s.batch} x {s.length}"
    )
    publish(name, rows, f"{told}; {note}")


def smollm2(steps: int) -> None:
    """SmolLM2-135M, all of it, continued by two workers; about 12 GB of memory."""
    from atoll.tasks.causal_lm import causal_lm
    from atoll.tasks.pretrained import tokenizer

    s, task = Setting(2, steps, batch=2, lr=1e-4, warmup=4, length=64, test=64), causal_lm("smollm2-135m", dtype="fp32")
    h = max(steps // 3, 1)
    paper = Way(f"DiLoCo, H = {h}, 8 bits both ways", lambda t, s: eight_bits(diloco(inner(t, s, h), 0.7, 0.9)), h, 0.02)
    plain = Way(
        f"DiLoCo, H = {h}, outer step 1, 8 bits both ways", lambda t, s: eight_bits(diloco(inner(t, s, h), 1.0, 0.0)), h, 0.02
    )
    chosen = [ways(h)[0], plain, paper]
    compared("low_communication_smollm2", chosen, task, real_text(tokenizer("smollm2-135m"), s, True), s, "SmolLM2-135M")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test of a minute, which learns little")
    parser.add_argument("--model", choices=["characters", "smollm2"], default="characters")
    parser.add_argument("--steps", type=int, help="of each worker")
    parser.add_argument("--batch", type=int, default=128, help="blocks of 64 characters a worker and step")
    parser.add_argument("--width", type=int, default=32, help="of the model")
    parser.add_argument("--every", type=int, default=32, help="H: steps between two rounds")
    parser.add_argument("--lr", type=float, default=2e-2)
    parser.add_argument("--only", default="", help="names that begin so, beside data-parallel; several with commas")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.model == "smollm2":
        smollm2(arguments.steps or 24)
        return
    s = Setting(4, arguments.steps or 192, arguments.batch, arguments.lr, warmup=20, length=64, test=1000)
    h = arguments.every
    if arguments.quick:
        s, h = s._replace(steps=40, batch=8, warmup=5, test=100), 40
    tokens = alphabet()
    module = transformer(len(tokens), arguments.width, layers=2, heads=4, context=s.length, seed=SEED)
    chosen = ways(h)
    if arguments.only:
        chosen = [chosen[0], *(w for w in chosen[1:] if w.name.startswith(tuple(arguments.only.split(","))))]
    compared("low_communication", chosen, next_token(module), real_text(tokens, s, arguments.quick), s, "characters")


if __name__ == "__main__":
    main()
