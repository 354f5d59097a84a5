"""No worker has a copy of the data, whether it is mapped from a file or was in memory when the workers were forked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from atoll.data.examples import Tensors
from atoll.data.mapped import mapped
from atoll.data.packed import pack
from atoll.engines.processes import processes
from atoll.types import Assignment, Batch, Batching, ClientId, Dataset, Examples, Local, Seen, Tree, Update

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/PID/smaps_rollup")
ROWS, WIDTH = 16_000, 1_024
MEGABYTES = ROWS * WIDTH * 4 // 2**20  # 62


class Copied:
    """What must not happen: each worker with the data for itself."""

    def __init__(self, whole: Examples) -> None:
        self.whole, self.own = whole, dict[str, Tensor]()

    def __len__(self) -> int:
        return len(self.whole)

    def take(self, index: Tensor) -> Batch:
        self.own = self.own or {name: x.clone() for name, x in self.whole.take(torch.arange(len(self))).items()}
        return {name: x.index_select(0, index) for name, x in self.own.items()}


def memory_mb() -> dict[str, float]:
    """Megabytes of this process: resident, its share of them, and what is its alone."""
    with open("/proc/self/smaps_rollup") as file:
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in file.read().splitlines()[1:]}
    own = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {"rss": kilobytes["Rss"] / 1024, "pss": kilobytes["Pss"] / 1024, "own": own / 1024}


def reading() -> Local[dict[str, float]]:
    """A fold that adds up all that it reads, and tells what memory its process has before and after."""

    def init(assignment: Assignment, memory: Tree) -> dict[str, float]:
        return {"sum": 0.0, **{f"{name} before": value for name, value in memory_mb().items()}}

    def step(carry: dict[str, float], batch: Batch) -> dict[str, float]:
        carry["sum"] += float(batch["x"].sum())
        return carry

    def final(assignment: Assignment, carry: dict[str, float], seen: Seen) -> tuple[Update, Tree]:
        metrics = {**carry, **memory_mb()}
        return Update(assignment.round, assignment.client, assignment.work, assignment.tree, 1.0, metrics), {}

    return Local(init, step, final, Batching(batch_size=64, shuffle=True))


def grown(how: str, tmp_path: Path) -> list[dict[str, float]]:
    """What the memory of two workers has grown by, each of which has read all the data twice."""
    whole = Tensors({"x": torch.ones(ROWS, WIDTH)})
    one = Dataset("large", {ClientId("one"): {"train": whole}}, None)
    held: Examples = mapped(str(pack(one, tmp_path / "large"))).clients[ClientId("one")]["train"] if how == "mapped" else whole
    held = Copied(held) if how == "copied" else held
    names = [ClientId("a"), ClientId("b")]
    engine = processes({"read": reading()}, {name: {"train": held} for name in names}, None, workers=2)
    try:
        found = []
        for number in range(2):  # in the second round both workers have mapped what they read in the first
            engine.submit([Assignment(number, name, "read", {"w": torch.zeros(1)}, seed=number) for name in names])
            found = list(engine.results(60.0))
            for answer in found:
                assert isinstance(answer, Update), answer
                engine.acknowledge(answer)
    finally:
        engine.close()
    assert [answer.metrics["sum"] for answer in found] == [ROWS * WIDTH] * 2  # type: ignore[union-attr]
    return [dict(answer.metrics) for answer in found]  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["mapped", "in memory"])
def test_workers_read_one_copy(how: str, tmp_path: Path) -> None:
    for worker in grown(how, tmp_path):
        assert worker["rss"] > MEGABYTES  # it has all the data before it,
        assert worker["own"] < 0.7 * MEGABYTES  # and does not own them


def test_a_copy_would_be_seen(tmp_path: Path) -> None:
    assert all(worker["own"] > MEGABYTES for worker in grown("copied", tmp_path))
