"""In this process, one client after another, each step replayed from a captured graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atoll.engines.serial import Clients, serial
from atoll.interfaces import Engine, Memories
from atoll.types import Local


def traced(locals_: Mapping[str, Local[Any]], clients: Clients, memories: Memories | None = None, threads: int = 1) -> Engine:
    """`serial` whose steps are captured once and replayed as straight-line code; equal to it up to rounding.

    >>> traced({}, {}).now() > 0
    True
    """
    return serial(locals_, clients, memories, threads, compute="traced")
