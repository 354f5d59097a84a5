"""In this process, several clients at once as one batched program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atoll.compute import stacked as compute
from atoll.engines.serial import Clients, serial
from atoll.interfaces import Engine, Memories
from atoll.types import Local


def stacked(
    locals_: Mapping[str, Local[Any]],
    clients: Clients,
    memories: Memories | None = None,
    threads: int = 1,
    chunk: int | None = None,
) -> Engine:
    """`serial` that trains a chunk of clients as one program: `chunk` of them, or as many as a trial finds fastest.

    Equal to `serial` up to rounding.

    >>> stacked({}, {}, chunk=4).now() > 0
    True
    """
    return serial(locals_, clients, memories, threads, compute.stacked(chunk))
