"""One client's LoRA tokens a second: Atoll's client half beside Hugging Face Trainer + PEFT, on the same steps.

Both train the same adapter of the same frozen base on the same batches in the same order, with the same optimiser and
learning rate, on as many threads, without evaluation, checkpoints or logging. Atoll is measured as an engine sees it:
from the assignment to the update. Trainer is measured from `train()` to its return; that it is built before is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lora_setting import MODEL, adapted, small_llama, speakers
from results import publish, verdict
from torch import Tensor, nn

from atoll import tree
from atoll.data.examples import batches
from atoll.engines.serial import serial
from atoll.local.adamw import adamw
from atoll.local.binding import binding
from atoll.local.sgd import sgd
from atoll.types import Assignment, Batching, ClientId, Examples, Local, Task, Tree, Update

SEED = 1
TARGET = 1.0  # Atoll's tokens a second over Trainer's
# How far two adapters may be apart, as a share of how far they were trained. In float32 the arithmetic is the same up
# to its order; Adam divides by the root of v, so that rounding in a gradient near 0 is not small in its step. With a
# bfloat16 base the attention kernels differ, and each product has 8 bits.
APART = {("fp32", "sgd"): 1e-3, ("fp32", "adamw"): 2e-2, ("bf16", "sgd"): 0.3, ("bf16", "adamw"): 0.5}
LOSSES_APART = {"fp32": 1e-4, "bf16": 1e-2}  # of mean training losses, as a share


class Setting(NamedTuple):
    """What both contenders are given."""

    optimiser: str
    lr: float
    batch_size: int
    steps: int
    threads: int


class Outcome(NamedTuple):
    """What one run of a contender gives."""

    seconds: float
    cpu_s: float
    loss: float  # mean over the steps
    trained: Tree  # the adapter after the last step


def atoll_runs(task: Task, examples: Examples, setting: Setting, way: Any) -> Callable[[], Outcome]:
    """One client's trip through the serial engine, each time it is called, from the same adapter."""
    local: Local[Any]
    if setting.optimiser == "adamw":
        local = adamw(task, lr=setting.lr, batch_size=setting.batch_size, steps=setting.steps)
    else:
        local = sgd(task, lr=setting.lr, batch_size=setting.batch_size, steps=setting.steps)
    start = tree.pack(binding(task.module).state())
    client = ClientId("one")
    engine = serial({"train": local}, {client: {"train": examples}}, threads=setting.threads, compute=way)

    def run() -> Outcome:
        began, before = time.perf_counter(), time.process_time()
        engine.submit([Assignment(0, client, "train", start, SEED)])
        answer = next(iter(engine.results(3600.0)))
        spent = time.perf_counter() - began, time.process_time() - before
        if not isinstance(answer, Update):
            raise SystemExit(f"the client failed: {answer.reason}")
        outcome = Outcome(*spent, answer.metrics["loss"], tree.add(start, answer.tree))
        engine.acknowledge(answer)
        return outcome

    return run


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The rows of Atoll's batches, one after another, as Trainer's loader reads them in order."""

    def __init__(self, examples: Examples, setting: Setting) -> None:
        batching = Batching("train", setting.batch_size, steps=setting.steps, shuffle=True)
        read = list(batches(examples, batching, SEED))
        self.columns = {name: torch.cat([batch[name] for batch in read]) for name in read[0]}

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def trainer_runs(module: nn.Module, examples: Examples, setting: Setting, folder: str) -> Callable[[], Outcome]:
    """`Trainer.train()`, each time it is called, from the same adapter."""
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    rows = Rows(examples, setting)
    options = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=setting.batch_size,
        max_steps=setting.steps,
        learning_rate=setting.lr,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused" if setting.optimiser == "adamw" else "sgd",
        weight_decay=0.01 if setting.optimiser == "adamw" else 0.0,
        max_grad_norm=0.0,  # no clipping
        train_sampling_strategy="sequential",  # the rows lie in the order in which Atoll reads them
        use_cpu=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )
    params = {name: p for name, p in module.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in params.items()}

    def run() -> Outcome:
        with torch.no_grad():
            for name, p in params.items():
                p.copy_(start[name])
        trainer = Trainer(model=module, args=options, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        torch.set_num_threads(setting.threads)
        began, before = time.perf_counter(), time.process_time()
        told = trainer.train()
        spent = time.perf_counter() - began, time.process_time() - before
        return Outcome(*spent, told.training_loss, {name: p.detach().clone() for name, p in params.items()})

    return run


def compare(model: str, dtype: str, setting: Setting, length: int, repeats: int, way: Any, folder: str) -> dict[str, Any]:
    """One row of the table: both contenders in turn, medians, and whether they learnt the same."""
    ours, theirs = adapted(model, dtype), adapted(model, dtype)
    start = tree.pack(binding(ours.module).state())
    named = {name: p for name, p in theirs.module.named_parameters() if p.requires_grad}
    if named.keys() != start.keys() or not all(torch.equal(named[name], start[name]) for name in start):
        raise SystemExit("the two contenders do not start from the same adapter")
    examples = next(iter(speakers(model, 1, setting.batch_size * setting.steps, length).values()))["train"]
    contenders = {
        "atoll": atoll_runs(ours, examples, setting, way),
        "trainer": trainer_runs(theirs.module, examples, setting, folder),
    }
    spent: dict[str, list[Outcome]] = {name: [] for name in contenders}
    last: dict[str, Outcome] = {}
    for number in range(repeats + 1):  # the first pair warms up: pages of the base, oneDNN's kernels
        order = list(contenders) if number % 2 else list(reversed(contenders))
        for name in order:  # in turn, so that a slow spell of the machine hits both
            last[name] = contenders[name]()
            if number:
                spent[name].append(last[name])
    tokens = setting.steps * setting.batch_size * length
    pairs = list(zip(spent["trainer"], spent["atoll"], strict=True))
    ratio = statistics.median(t.seconds / a.seconds for t, a in pairs)
    speed = {name: tokens / statistics.median(o.seconds for o in outcomes) for name, outcomes in spent.items()}
    apart = distance(last["atoll"].trained, last["trainer"].trained) / distance(start, last["trainer"].trained)
    allowed = APART[dtype, setting.optimiser]
    losses = abs(last["atoll"].loss - last["trainer"].loss) / abs(last["trainer"].loss)
    return {
        "base": dtype,
        "optimiser": setting.optimiser,
        "Atoll (tokens/s)": round(speed["atoll"], 1),
        "Trainer (tokens/s)": round(speed["trainer"], 1),
        "ratio": round(ratio, 3),
        f"at least {TARGET}": verdict(ratio, at_least=TARGET),
        "of CPU time": round(statistics.median(t.cpu_s / a.cpu_s for t, a in pairs), 3),
        "Atoll's loss": round(last["atoll"].loss, 5),
        "Trainer's loss": round(last["trainer"].loss, 5),
        "losses agree": f"to {losses:.1g}, at most {LOSSES_APART[dtype]:g}: {verdict(losses, at_most=LOSSES_APART[dtype])}",
        "adapters agree": f"to {apart:.1g}, at most {allowed:g}: {verdict(apart, at_most=allowed)}",
    }


def distance(a: Tree, b: Tree) -> float:
    """The Euclidean distance of two trees."""
    return float(torch.stack([(a[name] - b[name]).square().sum() for name in a]).sum().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--length", type=int, default=128, help="tokens of a block")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs, at least 3")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compute", default="eager", choices=["eager", "traced", "stacked"])
    parser.add_argument("--quick", action="store_true", help="a smoke test on a small random model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = small_llama(f"{folder}/model") if options.quick else options.model
        steps, repeats = (4, 3) if options.quick else (options.steps, max(3, options.repeats))
        rows = []
        for dtype in ("fp32", "bf16"):
            for optimiser, lr in (("adamw", 1e-3), ("sgd", 1e-1)):
                setting = Setting(optimiser, lr, options.batch_size, steps, options.threads)
                rows.append(compare(model, dtype, setting, options.length, repeats, options.compute, folder))
    about = "a random Llama" if options.quick else options.model
    note = (
        f"{about}, LoRA on queries and values, {options.batch_size} x {options.length} tokens, {steps} steps, "
        f"{options.threads} thread(s), compute {options.compute}; medians of {repeats}, ratios pair by pair, in turn"
    )
    publish("lora_trainer_quick" if options.quick else "lora_trainer", rows, note)


if __name__ == "__main__":
    main()
