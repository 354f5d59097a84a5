"""A site that says what it likes: gRPC, the generated classes, and no link."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from blake3 import blake3

from atoll.remote import protocol_pb2 as pb
from atoll.remote.channel import METHODS, SERVICE, SITE_KEY
from atoll.remote.chunks import Chunk
from atoll.remote.marks import mark_of
from atoll.remote.values import NEWEST, OLDEST, Credentials

SOON_S = 30.0


class Raw:
    """One channel to a hub; without `credentials` it calls itself what it likes, too."""

    def __init__(self, address: str, site: str, credentials: Credentials | None = None) -> None:
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", 1 << 25)]
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            tls = grpc.ssl_channel_credentials(credentials.authority, credentials.key, credentials.certificate)
            self._channel = grpc.secure_channel(address, tls, options)
        self._meta = ((SITE_KEY, site),)

    def call(self, name: str, said: object, write: Callable[[Any], bytes] | None = None) -> Any:
        """What a method gives. `write`: how the messages become bytes, else as they should."""
        shape, asked, answered = METHODS[name]
        stub = getattr(self._channel, shape)(f"/{SERVICE}/{name}", write or asked[0], answered[1])
        return stub(said, metadata=self._meta, timeout=SOON_S)

    def refused(self, name: str, said: object, write: Callable[[Any], bytes] | None = None) -> tuple[grpc.StatusCode, str]:
        """The status with which a method ends, and why."""
        try:
            found = self.call(name, said, write)
            list(found) if isinstance(found, Iterator) else found
        except grpc.RpcError as error:
            return error.code(), error.details()
        raise AssertionError(f"{name} was not refused")

    def close(self) -> None:
        self._channel.close()


class Session:
    """The session of a raw site, which takes part in whatever it is invited to; `heard` is called with what it is told."""

    def __init__(self, raw: Raw, heard: Callable[[pb.CoordinatorMessage], object]) -> None:
        self._said, self._heard = queue.Queue[pb.SiteMessage | None](), heard
        self._said.put(pb.SiteMessage(hello=pb.Hello(oldest=OLDEST, newest=NEWEST, release="raw")))
        shape, asked, answered = METHODS["Session"]
        stub = getattr(raw._channel, shape)(f"/{SERVICE}/Session", asked[0], answered[1])
        self._call = stub(iter(self._said.get, None), metadata=raw._meta)
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()

    def say(self, message: pb.SiteMessage) -> None:
        """Anything."""
        self._said.put(message)

    def _hear(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            for message in self._call:
                if message.WhichOneof("said") == "invitation":
                    self.say(pb.SiteMessage(consent=pb.Consent(job=message.invitation.job, accepted=True)))
                self._heard(message)

    def close(self) -> None:
        """Hang up."""
        self._said.put(None)
        self._call.cancel()
        self._thread.join(SOON_S)


def chunk(data: bytes, parcel: pb.Parcel | None = None, before: bytes = b"") -> Chunk:
    """Of an answer whose bytes `before` were sent already."""
    return Chunk(data, mark_of(blake3(before + data)), parcel, len(before))
