"""The coordinator's calls, in the background thread's loop: one session a site, and bytes in both directions."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc

from atoll.errors import AtollError, IdentityError, RemoteError, StoreError, UnknownName
from atoll.remote import protocol_pb2 as pb
from atoll.remote.adding import Adding
from atoll.remote.channel import GARBLED, NO_MESSAGE, SITE_KEY
from atoll.remote.chunks import Chunk, pack
from atoll.remote.desk import Unknown
from atoll.remote.spool import Damaged, Moved
from atoll.remote.values import CHUNK_BYTES, NEWEST, OLDEST, Blob, Limits

if TYPE_CHECKING:
    from atoll.remote.floor import Floor

T = TypeVar("T")
Context = Any  # grpc.aio.ServicerContext, which carries no types
_SILENT_PINGS = 3


class Session:
    """A site that is there: what is still to be said to it."""

    def __init__(self, site: str, loop: asyncio.AbstractEventLoop) -> None:
        self.site, self._loop, self.queue = site, loop, asyncio.Queue[pb.CoordinatorMessage | None]()

    def say(self, message: pb.CoordinatorMessage | None) -> None:
        """From any thread; None: hang up."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.queue.put_nowait, message)


class Service:
    """What gRPC calls. `floor` holds the state; bytes are read and written in threads, so that no disk stops the loop."""

    def __init__(
        self,
        floor: Floor,
        release: str,
        who: Callable[[bytes], str] | None,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        who_asks: Callable[[bytes], str] | None = None,
    ) -> None:
        self._floor, self._release, self._who, self._limits, self._loop = floor, release, who, limits, loop
        self._who_asks = who_asks or who
        self.threads = ThreadPoolExecutor(4, "atoll-hub-disk")
        self._ear = ThreadPoolExecutor(1, "atoll-hub-ear")  # what sites say does not wait for anybody's chunks

    async def session(self, requests: Any, context: Context) -> None:
        """One session: hello, welcome, and then both sides speak until one hangs up or falls silent."""
        site = await self._site(context)
        first = await self._within(context, context.read(), self._limits.stall_s, "said nothing after it had called")
        if first is grpc.aio.EOF or first.WhichOneof("said") != "hello":
            await _end(context, grpc.StatusCode.INVALID_ARGUMENT, "a session begins with a hello; this is no site of Atoll")
        version = await self._agree(context, site, first.hello)
        session = Session(site, self._loop)
        welcome = pb.CoordinatorMessage(welcome=pb.Welcome(version=version, release=self._release))
        await context.write(welcome)
        self._floor.came(session, list(first.hello.held))
        saying = asyncio.create_task(self._say(session, context))
        hearing = asyncio.create_task(self._hear(session, context))
        try:
            done, _ = await asyncio.wait([saying, hearing], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except AtollError as error:
            await _end(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            saying.cancel()
            hearing.cancel()
            self._floor.went(session)

    async def _agree(self, context: Context, site: str, hello: pb.Hello) -> int:
        version = min(hello.newest, NEWEST)
        if version < max(hello.oldest, OLDEST):
            older, at = (f"the site {site}", "there") if hello.newest < OLDEST else ("the coordinator", "at the coordinator")
            await _end(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the site speaks versions {hello.oldest} to {hello.newest} of the protocol (atoll {hello.release[:32]}), the "
                f"coordinator {OLDEST} to {NEWEST} (atoll {self._release}): {older} is too old, upgrade atoll {at}",
            )
        return version

    async def _say(self, session: Session, context: Context) -> None:
        number = 0
        while True:
            try:
                async with asyncio.timeout(self._limits.ping_s):
                    message = await session.queue.get()
            except TimeoutError:
                number += 1
                message = pb.CoordinatorMessage(ping=pb.Ping(number=number))
            if message is None:
                return
            await self._within(context, context.write(message), self._limits.stall_s, "does not read what it is sent")

    async def _hear(self, session: Session, context: Context) -> None:
        while True:
            silent_s = _SILENT_PINGS * self._limits.ping_s
            message = await self._within(context, context.read(), silent_s, "has fallen silent")
            if message is grpc.aio.EOF:
                return
            await self._site(context)  # a session lives for weeks, in which its certificate may be revoked or expire
            await self._loop.run_in_executor(self._ear, self._floor.heard, session, message)

    async def fetch(self, want: pb.Want, context: Context) -> None:
        """A tree that this site was offered, from an offset on."""
        site = await self._site(context)
        blob = Blob(want.blob.digest, want.blob.size_bytes)
        if want.offset > blob.size_bytes:
            await _end(context, grpc.StatusCode.INVALID_ARGUMENT, f"{want.offset} is beyond the end of what is asked for")
        moved = await self._checked(context, self._thread(self._floor.fetching, site, want.job, blob))
        try:
            file = os.open(self._floor.trees.path(blob), os.O_RDONLY)
        except OSError:
            await _end(context, grpc.StatusCode.NOT_FOUND, "this tree is not wanted any more")
        try:
            reading = self._thread(self._packed, blob, file, want.offset)
            while (found := await self._checked(context, reading)) is not None:
                chunk, at = found
                reading = self._thread(self._packed, blob, file, at)
                await self._within(context, context.write(chunk), self._limits.stall_s, "does not read what it fetches")
                moved(at)
                del found, chunk  # before the next: there may be hundreds of these calls
        finally:
            await asyncio.wait([reading])
            os.close(file)

    def _packed(self, blob: Blob, file: int, at: int) -> tuple[bytes, int] | None:
        data, mark = self._floor.trees.read(blob, file, at, self._floor.chunk_bytes)
        return (pack(Chunk(data, mark)), at + len(data)) if data else None

    async def have(self, parcel: pb.Parcel, context: Context) -> pb.Receipt:
        """How much of an answer is here, and whether it is wanted."""
        site = await self._site(context)
        return await self._checked(context, self._thread(self._floor.have, site, parcel))

    async def push(self, requests: Any, context: Context) -> pb.Receipt:
        """An answer from an offset on; what has come stays when the line is cut."""
        site, first = await self._site(context), True
        at, parcel = 0, pb.Parcel()
        adding = Adding(self.threads)
        try:
            async for chunk in self._chunks(context):
                if first:
                    first, parcel, at = False, chunk.parcel or parcel, chunk.offset
                    receipt = await self._checked(context, self._thread(self._floor.have, site, parcel))
                    if receipt.complete or not receipt.wanted or receipt.offset != at:
                        return receipt
                await self._checked(context, adding.then(self._floor.add, site, parcel, at, chunk.data, chunk.mark))
                at += len(chunk.data)
                del chunk
            await self._checked(context, adding.end())
        finally:
            await adding.settle()
        return await self._checked(context, self._thread(self._floor.have, site, parcel))

    async def _chunks(self, context: Context) -> AsyncIterator[Chunk]:
        while True:
            chunk = await self._within(context, context.read(), self._limits.stall_s, "stopped in the middle of an answer")
            if chunk is grpc.aio.EOF:
                return
            if len(chunk.data) > CHUNK_BYTES:
                await _end(context, grpc.StatusCode.RESOURCE_EXHAUSTED, f"chunks are of {CHUNK_BYTES} bytes at most")
            yield chunk
            del chunk

    async def ask(self, question: pb.Question, context: Context) -> pb.Reply:
        """What the layer above answers."""
        site = await self._site(context, self._who_asks)
        body = await self._checked(context, self._thread(self._floor.asked, site, question.name, question.body))
        return pb.Reply(body=body)

    async def _site(self, context: Context, who: Callable[[bytes], str] | None = None) -> str:
        """Who calls, by the certificate; never by what is said in a message."""
        if self._who is None:
            name = dict(context.invocation_metadata() or ()).get(SITE_KEY, "")
            return str(name)
        shown = context.auth_context().get("x509_pem_cert", [])
        try:
            return (who or self._who)(bytes(shown[0]) if shown else b"")
        except AtollError as error:
            await _end(context, grpc.StatusCode.PERMISSION_DENIED, str(error))

    def close(self) -> None:
        """The threads end with what they are doing; to be called when the loop is closed."""
        self.threads.shutdown()
        self._ear.shutdown()

    def _thread(self, call: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        return self._loop.run_in_executor(self.threads, call, *arguments)

    async def _checked(self, context: Context, doing: Awaitable[T]) -> T:
        """What it gives; what it raises becomes the status that the site understands."""
        try:
            return await doing
        except (Damaged, Moved) as error:
            await _end(context, grpc.StatusCode.DATA_LOSS, str(error))
        except (Unknown, UnknownName) as error:
            await _end(context, grpc.StatusCode.NOT_FOUND, str(error))
        except IdentityError as error:
            await _end(context, grpc.StatusCode.PERMISSION_DENIED, str(error))
        except StoreError as error:
            await _end(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except AtollError as error:
            await _end(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def _within(self, context: Context, doing: Awaitable[T], timeout_s: float, otherwise: str) -> T:
        try:
            async with asyncio.timeout(timeout_s):
                found = await doing
        except TimeoutError:
            await _end(context, grpc.StatusCode.DEADLINE_EXCEEDED, f"the site {otherwise} for {timeout_s:g} s")
        if found is GARBLED:
            await _end(context, grpc.StatusCode.INVALID_ARGUMENT, NO_MESSAGE)
        return found


async def _end(context: Context, code: grpc.StatusCode, why: str) -> NoReturn:
    await context.abort(code, why)
    raise RemoteError(why)  # abort has raised by now
