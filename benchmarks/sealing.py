"""What sealing a checkpoint costs, beside writing and reading it in the open: GB/s, in memory so that no disk is measured."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from results import publish

from atoll.store import state
from atoll.store.keys import Keys
from atoll.store.places import LocalFile, Place
from atoll.store.sealed import Sealed


def fastest_s(act: Callable[[], object], repeats: int) -> float:
    def once() -> float:
        began = time.perf_counter()
        act()
        return time.perf_counter() - began

    return min(once() for _ in range(repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4 << 10, 4 << 20, 400 << 20], metavar="BYTES")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", default="/dev/shm")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        open_: Place = LocalFile(Path(folder) / "open")
        sealed: Place = Sealed(LocalFile(Path(folder) / "sealed"), Keys(bytes(32)), "benchmark")
        for size_bytes in asked.sizes:
            tree = {"w": torch.randn(size_bytes // 4)}
            for name, place in (("open", open_), ("sealed", sealed)):
                write_s = fastest_s(lambda tree=tree, place=place: state.save(tree, place), asked.repeats)  # type: ignore[misc]
                read_s = fastest_s(lambda place=place: state.load(None, place), asked.repeats)  # type: ignore[misc]
                speeds = {"write GB/s": size_bytes / write_s / 1e9, "read GB/s": size_bytes / read_s / 1e9}
                rows.append({"bytes": size_bytes, "": name, **speeds, "write ms": write_s * 1e3, "read ms": read_s * 1e3})
    publish("sealing", rows, "AES-256-GCM in chunks of 256 KiB, one thread, files in memory, no flush")


if __name__ == "__main__":
    main()
