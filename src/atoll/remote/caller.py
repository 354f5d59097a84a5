"""A site calls its coordinator, and calls again whenever the line is lost, with a bounded and jittered wait, for ever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio

from atoll.errors import AtollError
from atoll.remote.bench import Bench
from atoll.remote.channel import open_channel
from atoll.remote.errands import Line
from atoll.remote.outbox import Letter
from atoll.remote.values import Credentials, Limits

_MOST_WAIT_S = 15.0


class Caller:
    """Owns the connection, one at a time. Used in the loop's thread, but for what it says of itself."""

    def __init__(
        self,
        address: str,
        credentials: Credentials | None,
        site: str,
        server_name: str | None,
        bench: Bench,
        limits: Limits,
    ) -> None:
        self._address, self.credentials, self._site, self._server_name = address, credentials, site, server_name
        self._bench, self._limits = bench, limits
        self._threads = ThreadPoolExecutor(4, "atoll-link-disk")
        self.line: Line | None = None
        self.online, self.trouble = False, "the coordinator has not been reached yet"
        self._hurry: Callable[[], object] = _nothing

    async def forever(self) -> None:
        """Call, and call again; ends by being cancelled."""
        wait_s = self._limits.retry_s
        while True:
            task = asyncio.create_task(self._call())
            self._hurry = task.cancel
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                task.cancel()
                await asyncio.wait([task])
                raise
            if task.cancelled() or task.result():  # a new certificate, or a line that was lost after a welcome
                wait_s = self._limits.retry_s
            await asyncio.sleep(wait_s * (0.5 + random.random()))
            wait_s = min(2 * wait_s, _MOST_WAIT_S)

    async def _call(self) -> bool:
        """One connection, to its end. True: the coordinator had welcomed this site."""
        channel = open_channel(self._address, self.credentials, self._server_name)
        welcomed = False

        def welcome() -> None:
            nonlocal welcomed
            welcomed = True
            with self._bench.changed:
                self.online, self.trouble = True, ""
                self._bench.changed.notify_all()

        try:
            self.line = Line(channel, self._site, self._bench, self._limits, self._threads)
            await self.line.live(welcome)
        except grpc.aio.AioRpcError as error:
            self.trouble = error.details() or f"the coordinator ended the call ({error.code().name.lower()})"
        except TimeoutError:
            self.trouble = "the coordinator has fallen silent"
        except AtollError as error:
            self.trouble = str(error)
        except (asyncio.InvalidStateError, grpc.aio.UsageError):  # their words are gRPC's own
            self.trouble = "the line was lost"
        finally:
            self.online, self.line = False, None
            await channel.close(None)
        return welcomed

    def renew(self, credentials: Credentials) -> None:
        """Take up the new certificate: the connection is made anew."""
        self.credentials = credentials
        self._hurry()

    def close(self) -> None:
        """The threads end with what they are doing; to be called when the loop is closed."""
        self._threads.shutdown()

    def post(self, letter: Letter) -> None:
        """Send an answer now, if there is a line; if not, it is sent when its work is offered again."""
        if self.line is not None and self.online:
            self.line.post(letter)


def _nothing() -> None:
    """Before the first call."""
