"""One background thread with an event loop, and plain calls into it: asyncio stays behind this module's users."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Loop:
    """Owns a daemon thread that runs an event loop until `close`.

    >>> async def sum_of(a: int, b: int) -> int:
    ...     return a + b
    >>> loop = Loop("sums")
    >>> loop.run(sum_of(1, 2), timeout_s=5.0)
    3
    >>> loop.close()
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """What `work` returns, or raises; TimeoutError after `timeout_s`. Not to be called from the loop's own thread."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(timeout_s)
        finally:
            future.cancel()

    def soon(self, call: Callable[..., object], *arguments: object) -> None:
        """Call it in the loop's thread, and do not wait; nothing happens once the loop is closed."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(call, *arguments)

    def turns(self, timeout_s: float) -> bool:
        """Does it take up a call within this time?"""
        turned = threading.Event()
        self.soon(turned.set)
        return turned.wait(timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """End what still runs in it, then the thread; twice is as good as once."""
        if self.loop.is_closed():
            return
        self.soon(self.loop.stop)
        self._thread.join(timeout_s)

    def _forever(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        finally:
            self.loop.close()
