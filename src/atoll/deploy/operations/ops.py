"""What an operator's machines ask over HTTP: `/metrics`, `/healthz`, `/readyz`. Only GET, and only reading.

The server is small so that its bounds can be seen: a request has one head of limited size, all of it and the answer within a few
seconds in total (a limit for each read would let a slow client stay for hours), and few are answered at once. There is nothing
here that a page in a browser could change, so neither the origin nor the host of a request is looked at.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from atoll.errors import ConfigError, RemoteError

HEAD_BYTES = 8192
REQUEST_S = 5.0  # for the whole of a request and its answer
AT_ONCE = 16
TEXT = "text/plain; charset=utf-8"
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout"}
_REASONS |= {431: "Request Header Fields Too Large", 500: "Internal Server Error", 503: "Service Unavailable"}


class Health(Protocol):
    """What is known of a process. Each is "" where all is well, else the reason in one sentence."""

    def alive(self) -> str:
        """Do its threads run? If not, only a restart helps."""
        ...

    def ready(self) -> str:
        """Can it do its work now?"""
        ...


class Numbers(Protocol):
    """What `/metrics` shows."""

    kind: str  # of content, as the format calls itself

    def text(self) -> bytes: ...


class Reply(NamedTuple):
    """An answer before it is sent."""

    status: int
    body: bytes
    kind: str = TEXT

    def wire(self) -> bytes:
        """As it is sent.

        >>> Reply(200, b"ok").wire().splitlines()[0]
        b'HTTP/1.0 200 OK'
        """
        fields = {"Content-Type": self.kind, "Content-Length": len(self.body), "Connection": "close", "Cache-Control": "no-store"}
        fields["X-Content-Type-Options"] = "nosniff"
        fields |= {"Allow": "GET"} if self.status == 405 else {}
        lines = [f"HTTP/1.0 {self.status} {_REASONS[self.status]}", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


def reply(head: bytes, health: Health, numbers: Numbers) -> Reply:
    """The answer to a request's head."""
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return Reply(400, b"this is no request of HTTP/1\n")
    method, path = words[0], words[1].partition(b"?")[0]
    if method != b"GET":
        return Reply(405, b"only GET is answered\n")
    if path == b"/metrics":
        return Reply(200, numbers.text(), numbers.kind)
    if path in (b"/healthz", b"/readyz"):
        trouble = health.alive() if path == b"/healthz" else health.ready()
        return Reply(503, f"{trouble}\n".encode()) if trouble else Reply(200, b"ok\n")
    return Reply(404, b"there are /metrics, /healthz and /readyz\n")


def place(text: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT"; a port alone is on this machine only. Raises ConfigError.

    >>> place("9464"), place("[::1]:9464")
    (('127.0.0.1', 9464), ('::1', 9464))
    """
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ConfigError(f"--ops {text!r} is no HOST:PORT; write 127.0.0.1:9464, or 9464 for this machine only")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


class Ops:
    """Owns a port and a thread that answers there, until `close`."""

    def __init__(self, address: str, health: Health, numbers: Numbers) -> None:
        """Listen. Raises ConfigError for an address that is none, RemoteError where the port can't be had."""
        host, port = place(address)
        try:
            self._server = _Server((host, port), lambda head: reply(head, health, numbers))
        except OSError as error:
            raise RemoteError(f"--ops {address} can't be listened on: {error.strerror or error}; is the port taken?") from None
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="atoll-ops", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; an answer under way ends within its few seconds."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)


@contextlib.contextmanager
def answering(address: str | None, health: Health, numbers: Numbers | None, say: Callable[[str], object]) -> Iterator[None]:
    """Answer at `address`, where there is one, until the block ends. Raises as `Ops`."""
    if address is None or numbers is None:
        yield
        return
    port = Ops(address, health, numbers)
    try:
        say(f"metrics and health on http://{port.address}")
        yield
    finally:
        port.close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads, block_on_close, allow_reuse_address = True, False, True
    request_queue_size = AT_ONCE

    def __init__(self, address: tuple[str, int], answer: Callable[[bytes], Reply]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.answer, self._free = answer, threading.BoundedSemaphore(AT_ONCE)
        super().__init__(address, _Request)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)  # who holds all places loses them within seconds
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; what `answer` raises is answered with 500."""


class _Request(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        ends_s = time.monotonic() + REQUEST_S
        try:
            answer = self._answer(ends_s)
            self.request.settimeout(max(ends_s - time.monotonic(), 0.5))  # `sendall` takes it for the whole
            self.request.sendall(answer.wire())
            self.request.shutdown(socket.SHUT_WR)
        except OSError:
            return  # it went away, or did not read in time

    def _answer(self, ends_s: float) -> Reply:
        try:
            head = self._head(ends_s)
        except TimeoutError:
            return Reply(408, f"the request took more than {REQUEST_S:g} s\n".encode())
        if not head.endswith(b"\r\n\r\n"):
            return Reply(431, f"a request has at most {HEAD_BYTES} bytes\n".encode())
        try:
            return self.server.answer(head)
        except Exception as error:  # a probe must hear that something is wrong, whatever it is
            return Reply(500, f"{type(error).__name__}\n".encode())

    def _head(self, ends_s: float) -> bytes:
        """Up to the empty line that ends it, or more bytes than it may have. Raises TimeoutError, OSError."""
        head = b""
        while b"\r\n\r\n" not in head and len(head) <= HEAD_BYTES:
            left_s = ends_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self.request.settimeout(left_s)
            data = self.request.recv(HEAD_BYTES)
            if not data:
                raise ConnectionResetError
            head += data
        found = head.find(b"\r\n\r\n") + 4
        return head[:found] if 4 <= found <= HEAD_BYTES else head.rstrip() or b"x"
