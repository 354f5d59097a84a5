"""What every system of the comparison is asked to do, where it reads its data, and how it says what it measured.

Imported inside each peer's own environment: the standard library and numpy only.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BATCH, LR, EPOCHS = 10, 0.1, 1


class Workload(NamedTuple):
    """FedAvg: `cohort` of `clients` a round, each one epoch of SGD in batches of BATCH at LR."""

    clients: int
    cohort: int
    model: str  # "mlp": 784-200-200-10; "cnn": two padded 5x5 convolutions of 32 and 64 with 2x2 pooling, dense 512, 10


WORKLOADS = {
    "w1-mlp": Workload(100, 10, "mlp"),
    "w1-cnn": Workload(100, 10, "cnn"),
    "w2-mlp": Workload(1000, 100, "mlp"),
    "tiny": Workload(4, 2, "mlp"),  # for tests
}


class Data(NamedTuple):
    """All images and the split, mapped from one file: processes share its pages, nobody copies it.

    Client k holds the rows of index k on the first axis.
    """

    x: NDArray[np.float32]  # (clients, examples, 1, 28, 28)
    y: NDArray[np.int64]  # (clients, examples)
    test_x: NDArray[np.float32]  # (examples, 1, 28, 28)
    test_y: NDArray[np.int64]


class Job(NamedTuple):
    """The command line that all systems have."""

    workload: Workload
    rounds: int
    data: Path
    out: Path
    variant: str  # one of the system's settings
    began: float  # time.monotonic() when the runner started the process


def job() -> Job:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variant", default="")
    parser.add_argument("--began", type=float, default=time.monotonic())
    given = parser.parse_args()
    return Job(WORKLOADS[given.workload], given.rounds, given.data.resolve(), given.out.resolve(), given.variant, given.began)


@cache
def read(path: Path) -> Data:
    """The data of a safetensors file, by numpy alone: 8 bytes of length, a JSON header, then the tensors.

    Mapped once a process, for systems that ask again for each client.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))

    def mapped(name: str, dtype: type) -> NDArray[Any]:
        at, shape = header[name]["data_offsets"][0], tuple(header[name]["shape"])
        return np.memmap(path, dtype, "c", 8 + size + at, shape).view(np.ndarray)  # "c": torch wants it writable

    x, y = (mapped(name, dtype) for name, dtype in (("x", np.float32), ("y", np.int64)))
    return Data(x, y, mapped("test_x", np.float32), mapped("test_y", np.int64))


class Measured:
    """What a system says: when its rounds ended, how long it imported, how well it learned."""

    def __init__(self, asked: Job) -> None:
        self._job, self._ends, self._import_s = asked, list[float](), 0.0

    def importing(self, *modules: str) -> Sequence[ModuleType]:
        """Import these and count the time: the share of start-up that is the framework's, not the system's."""
        before = time.monotonic()
        found = [import_module(module) for module in modules]
        self._import_s += time.monotonic() - before
        return found

    def round_ended(self) -> None:
        self._ends.append(time.monotonic())

    def write(self, accuracy: float, **about: Any) -> None:
        """Raises AssertionError where the system did another number of rounds than it was asked."""
        ends = self._ends
        assert len(ends) == self._job.rounds, f"{len(ends)} rounds ended, not {self._job.rounds}"
        said = {
            "first_round_s": ends[0] - self._job.began,
            "import_s": self._import_s,
            "round_s": [after - before for before, after in pairwise(ends)],
            "accuracy": accuracy,
            **about,
        }
        self._job.out.write_text(json.dumps(said, indent=2) + "\n")
