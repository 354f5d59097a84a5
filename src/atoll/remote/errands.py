"""The site's calls over one connection, in the background thread's loop: a session, and bytes in both directions."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import random
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
import grpc.aio

from atoll.errors import RemoteError, StoreError
from atoll.remote import protocol_pb2 as pb
from atoll.remote.adding import Adding
from atoll.remote.bench import Bench, Work, nobody_listens, parcel_to
from atoll.remote.channel import SITE_KEY, stub
from atoll.remote.outbox import Letter
from atoll.remote.spool import Damaged, Moved
from atoll.remote.values import CHUNK_BYTES, NEWEST, OLDEST, Limits, chunk_size
from atoll.types import Failure

T = TypeVar("T")
_MOST_RETRY_S = 15.0
_PROGRESS_S = 0.5  # between two reports of how far the trainings are
_SILENT_PINGS = 3
_GONE = grpc.StatusCode.NOT_FOUND


class Line:
    """One connection: its session, and the transfers that go over it. All of it ends together, and is begun anew."""

    def __init__(self, channel: grpc.aio.Channel, site: str, bench: Bench, limits: Limits, threads: ThreadPoolExecutor) -> None:
        self._bench, self._limits, self._threads = bench, limits, threads
        self._meta, self._loop = ((SITE_KEY, site),), asyncio.get_running_loop()
        self._session, self._fetch, self._have, self._push, self._ask = (
            stub(channel, name) for name in ("Session", "Fetch", "Have", "Push", "Ask")
        )
        self._queue = asyncio.Queue[pb.SiteMessage]()
        self._errands: dict[object, asyncio.Task[None]] = {}
        self._broken: asyncio.Future[None] = self._loop.create_future()
        self._fetching: dict[str, asyncio.Lock] = {}

    async def live(self, welcomed: Callable[[], None]) -> None:
        """The session, from hello to whatever ends it: returns or raises, never goes on in silence."""
        call = self._session(metadata=self._meta)
        release = importlib.metadata.version("atoll")
        hello = pb.Hello(oldest=OLDEST, newest=NEWEST, release=release, held=self._bench.hello())
        await _within(call.write(pb.SiteMessage(hello=hello)), self._limits.stall_s)
        first = await _within(call.read(), self._limits.stall_s)
        if first is grpc.aio.EOF:
            raise RemoteError(await call.details() or "the coordinator hung up")
        if first.WhichOneof("said") != "welcome" or not OLDEST <= first.welcome.version <= NEWEST:
            raise RemoteError(
                f"the coordinator (atoll {first.welcome.release[:32]}) answers in version {first.welcome.version} of the "
                f"protocol, this site speaks {OLDEST} to {NEWEST} (atoll {release}); use one release of atoll at both ends"
            )
        welcomed()
        self._bench.say = self._say
        both = [asyncio.create_task(self._hear(call)), asyncio.create_task(self._speak(call))]
        try:
            done, _ = await asyncio.wait([*both, self._broken], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            raise RemoteError(await _within(call.details(), self._limits.stall_s) or "the coordinator hung up")
        finally:
            if self._bench.say == self._say:
                self._bench.say = nobody_listens
            for task in [*both, *self._errands.values()]:
                task.cancel()
            await asyncio.gather(*both, *self._errands.values(), return_exceptions=True)
            call.cancel()

    def _say(self, message: pb.SiteMessage) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, message)

    async def _speak(self, call: Any) -> None:
        number, spoke_s = 0, time.monotonic()
        while True:
            try:
                async with asyncio.timeout(_PROGRESS_S):
                    messages = [await self._queue.get()]
            except TimeoutError:
                messages = self._bench.moved()
                if not messages and time.monotonic() - spoke_s > self._limits.ping_s:
                    number += 1
                    messages = [pb.SiteMessage(ping=pb.Ping(number=number))]
            for message in messages:
                spoke_s = time.monotonic()
                await _within(call.write(message), self._limits.stall_s)

    async def _hear(self, call: Any) -> None:
        while True:
            message = await _within(call.read(), _SILENT_PINGS * self._limits.ping_s)
            if message is grpc.aio.EOF:
                return
            kind = message.WhichOneof("said")
            if kind == "offer":
                self._offer(await self._thread(self._bench.offered, message.offer))
            elif kind in ("invitation", "settled", "cancel", "ending"):
                does = {"invitation": "invited", "settled": "settled", "cancel": "cancelled", "ending": "closed"}[kind]
                await self._thread(getattr(self._bench, does), getattr(message, kind))

    def _offer(self, to_do: Work | Letter | None) -> None:
        if isinstance(to_do, Letter):
            self.post(to_do)
        elif to_do is not None:
            self._begin((to_do.job, to_do.place, to_do.key), lambda: self._get(to_do))

    async def question(self, asked: pb.Question, timeout_s: float) -> pb.Reply:
        """What the layer above asks the coordinator."""
        reply: pb.Reply = await self._ask(asked, metadata=self._meta, timeout=timeout_s)
        return reply

    def post(self, letter: Letter) -> None:
        """Send an answer, unless that is under way."""
        self._begin(letter, lambda: self._put(letter))

    def _begin(self, name: object, errand: Callable[[], Awaitable[bool]]) -> None:
        if name not in self._errands:
            task = asyncio.create_task(self._insist(errand))
            self._errands[name] = task
            task.add_done_callback(lambda done: self._ended(name, done))

    def _ended(self, name: object, task: asyncio.Task[None]) -> None:
        self._errands.pop(name, None)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._broken.done():
            self._broken.set_exception(error)  # a defect: it ends the session aloud, where nobody would miss the errand

    async def _insist(self, errand: Callable[[], Awaitable[bool]]) -> None:
        """Again and again, for as long as the session lasts, until the errand is done."""
        wait_s = self._limits.retry_s
        while True:
            try:
                if await errand():
                    return
                wait_s = self._limits.retry_s  # it has moved on
            except grpc.aio.AioRpcError as error:
                if error.code() == _GONE:
                    return  # not wanted any more, or the coordinator will offer it anew
            except (Damaged, Moved, TimeoutError, asyncio.InvalidStateError, grpc.aio.UsageError):
                pass  # what came before is kept
            await asyncio.sleep(wait_s * (0.5 + random.random()))
            wait_s = min(2 * wait_s, _MOST_RETRY_S)

    async def _get(self, work: Work) -> bool:
        """A tree, from where it stopped. True: it is here, or nobody wants it."""
        trees = self._bench.trees
        async with self._fetching.setdefault(work.tree.digest, asyncio.Lock()):  # several works may need one tree
            if not self._bench.wants(work):
                return True  # withdrawn, and its part dropped
            if not trees.has(work.tree):
                try:
                    part = await self._thread(trees.part, work.tree)
                    if part.offset < work.tree.size_bytes:
                        await self._receive(work, part.offset)
                    await self._thread(trees.finish, part)
                except (Damaged, Moved):
                    raise
                except StoreError as error:  # the disk is full, which may pass
                    work.text = str(error)
                    self._say(work.progress())
                    return False
                except RemoteError as error:  # it is not to be had: larger than this site takes, or hostile
                    letter = await self._thread(self._bench.answered, work.job, work.place, _refusal(work, error))
                    if letter is not None:
                        self.post(letter)
                    return True
        await self._thread(self._bench.fetched, work)
        return True

    async def _receive(self, work: Work, at: int) -> None:
        blob = pb.Blob(digest=work.tree.digest, size_bytes=work.tree.size_bytes)
        call = self._fetch(pb.Want(job=work.job, blob=blob, offset=at), metadata=self._meta)
        adding = Adding(self._threads)
        try:
            while (chunk := await _within(call.read(), self._limits.stall_s)) is not grpc.aio.EOF:
                await adding.then(self._bench.trees.add, work.tree, at, chunk.data, chunk.mark)
                at += len(chunk.data)
            await adding.end()
            if await call.code() != grpc.StatusCode.OK or at < work.tree.size_bytes:
                raise grpc.aio.AioRpcError(await call.code(), await call.initial_metadata(), await call.trailing_metadata())
        finally:
            await adding.settle()
            call.cancel()

    async def _put(self, letter: Letter) -> bool:
        """An answer, from where it stopped. True: it is there, or nobody wants it now."""
        parcel, outbox = parcel_to(letter), self._bench.outbox
        there = await self._have(parcel, metadata=self._meta, timeout=self._limits.stall_s)
        if there.complete or not there.wanted:
            return True
        try:
            file = os.open(outbox.path(letter), os.O_RDONLY)
        except OSError:
            return True  # settled meanwhile
        call = self._push(metadata=self._meta)
        try:
            chunk_bytes = chunk_size(there.chunk_bytes or CHUNK_BYTES)
            at, reading = there.offset, self._thread(outbox.chunk, letter, file, there.offset, chunk_bytes)
            while (chunk := await reading) is not None:
                if at == there.offset:
                    chunk = chunk._replace(parcel=parcel, offset=at)
                at += len(chunk.data)
                reading = self._thread(outbox.chunk, letter, file, at, chunk_bytes)
                await _within(call.write(chunk), self._limits.stall_s)
            await call.done_writing()
            receipt = await _within(call, self._limits.stall_s)
            return bool(receipt.complete or not receipt.wanted)
        except (asyncio.InvalidStateError, grpc.aio.UsageError):  # it was answered before all was sent
            receipt = await _within(call, self._limits.stall_s)
            return bool(receipt.complete or not receipt.wanted)
        finally:
            await asyncio.wait([reading])
            os.close(file)
            call.cancel()

    def _thread(self, call: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        return self._loop.run_in_executor(self._threads, call, *arguments)


def _refusal(work: Work, error: RemoteError) -> Failure:
    return Failure(*work.place, "error", f"its site does not take the tree: {error}")


async def _within(doing: Awaitable[T], timeout_s: float) -> T:
    """What it gives; TimeoutError where it does not move for so long."""
    async with asyncio.timeout(timeout_s):
        return await doing
