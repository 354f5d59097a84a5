"""The engine that fits: where clients run is counted, how their steps are computed is measured on the first of each work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from atoll.compute.measured import measured
from atoll.engines.processes import processes
from atoll.engines.serial import Clients, serial
from atoll.interfaces import Engine, Memories
from atoll.types import Local


def auto(
    locals_: Mapping[str, Local[Any]],
    clients: Clients,
    memories: Memories | None = None,
    workers: int | None = None,
    threads: int = 1,
    before: str = "",
) -> Engine:
    """`processes` where there are cores and clients for two, else `serial`; eager, traced or stacked as measured.

    `before`: what an earlier part of the same run measured (`Measured.told`), so that a resumed run goes on alike.
    A model on a GPU is trained in this process, since what has begun to use CUDA can't be forked.

    >>> type(auto({}, {})).__name__
    'Serial'
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    compute, crew = measured(before), min(workers or cores, len(clients))
    if crew < 2 or not hasattr(os, "fork") or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return serial(locals_, clients, memories, threads, compute)
    return processes(locals_, clients, memories, crew, threads, compute)
