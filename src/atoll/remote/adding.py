"""Chunks written one after another in threads: each while the next is on its way, and none lost once it is in hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Adding:
    """Owns the last write. At most two are under way, so that what comes faster than the disk waits in the network."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads, self._last = threads, None

    _last: Future[Any] | None

    async def then(self, write: Callable[..., object], *arguments: object) -> None:
        """Begin a write, at once; return when the one before has ended. Raises what that one has raised."""
        before, self._last = self._last, self._threads.submit(_after, self._last, write, *arguments)
        if before is not None:
            await _ended(before)

    async def end(self) -> None:
        """Return when all have ended. Raises what the last one has raised."""
        if self._last is not None:
            await _ended(self._last)

    async def settle(self) -> None:
        """Return when all have ended, whatever became of them."""
        if self._last is not None:
            done, _ = await asyncio.wait([asyncio.wrap_future(self._last)])
            for future in done:
                future.exception()  # `then` or `end` has raised it, or nobody is there to hear it


async def _ended(write: Future[Any]) -> None:
    if write.done():
        write.result()
    else:
        await asyncio.shield(asyncio.wrap_future(write))


def _after(before: Future[Any] | None, write: Callable[..., object], *arguments: object) -> None:
    if before is not None:
        before.result()  # it was submitted earlier, so it runs or has run: nobody waits in a circle
    write(*arguments)
