"""The coordinator's calls, each that is refused told to who keeps a record of it: who asked what, and why not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio

from atoll.errors import AtollError
from atoll.remote import protocol_pb2 as pb
from atoll.remote.channel import GARBLED, METHODS, NO_MESSAGE, SITE_KEY

Who = Callable[[bytes], str]
Refused = Callable[[str, str, str], object]  # (the caller, "" where nobody vouches for it; what it asked; why not)
_ACCIDENTS = (grpc.StatusCode.DATA_LOSS,)  # bytes that were damaged on the way, and are sent again


def recorded(service: Any, who: Who | None, refused: Refused, threads: Executor) -> SimpleNamespace:
    """The methods of `service`; `refused` is called in one of `threads`, since it may wait for a disk."""

    def wrapped(name: str, method: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def told(request: Any, context: Any, why: str) -> None:
            asked = f"{name} {_named(request)}".strip()
            await asyncio.get_running_loop().run_in_executor(threads, refused, caller(context, who), asked, why)

        async def call(request: Any, context: Any) -> Any:
            try:
                if request is GARBLED:
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, NO_MESSAGE)
                found = await method(request, context)
            except grpc.aio.AbortError:
                if context.code() not in _ACCIDENTS:
                    await told(request, context, context.details())
                raise
            if name == "Push" and not found.wanted:
                await told(request, context, "the answer is not asked for, or another one came before it")
            return found

        return call

    return SimpleNamespace(**{name.lower(): wrapped(name, getattr(service, name.lower())) for name in METHODS})


def caller(context: Any, who: Who | None) -> str:
    """Whose certificate it is; "" where it does not count."""
    if who is None:
        return str(dict(context.invocation_metadata() or ()).get(SITE_KEY, ""))
    shown = context.auth_context().get("x509_pem_cert", [])
    try:
        return who(bytes(shown[0]) if shown else b"")
    except AtollError:
        return ""  # why not is in what is recorded


def _named(request: Any) -> str:
    """What a message of one request speaks of."""
    if isinstance(request, pb.Parcel):
        place = request.place
        return f"{place.job} {place.client} {place.work} round {place.round}"
    if isinstance(request, pb.Want):
        return str(request.job)
    return str(request.name) if isinstance(request, pb.Question) else ""
