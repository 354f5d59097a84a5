"""The port that an operator's machines ask, over real sockets: what it answers, and what nobody can do to it."""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
from collections.abc import Iterator

import pytest

from atoll.deploy.operations import ops
from atoll.deploy.operations.ops import AT_ONCE, HEAD_BYTES, Ops, place
from atoll.errors import ConfigError, RemoteError

PATIENCE_S = 30.0


class Known:
    """A process of which this is known."""

    def __init__(self, alive: str = "", ready: str = "") -> None:
        self.told = alive, ready

    def alive(self) -> str:
        return self.told[0]

    def ready(self) -> str:
        return self.told[1]


class Numbers:
    kind = "text/plain; version=0.0.4"

    def __init__(self, body: bytes = b"up 1\n") -> None:
        self.body = body

    def text(self) -> bytes:
        return self.body


@contextlib.contextmanager
def open_at(health: Known | None = None, numbers: Numbers | None = None) -> Iterator[tuple[str, int]]:
    port = Ops("127.0.0.1:0", health or Known(), numbers or Numbers())
    try:
        yield place(port.address)
    finally:
        port.close()


def said(at: tuple[str, int], raw: bytes) -> bytes:
    """All that comes back for these bytes."""
    with socket.create_connection(at, PATIENCE_S) as line:
        line.sendall(raw)
        return everything(line)


def everything(line: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := line.recv(65536):
            found += data
    return found


def get(at: tuple[str, int], path: str, method: str = "GET") -> tuple[int, str]:
    asking = http.client.HTTPConnection(*at, timeout=PATIENCE_S)
    asking.request(method, path)
    answer = asking.getresponse()
    return answer.status, answer.read().decode()


@pytest.mark.parametrize(
    ("health", "path", "status", "body"),
    [
        (Known(), "/healthz", 200, "ok\n"),
        (Known(), "/readyz?verbose=1", 200, "ok\n"),
        (Known(ready="draining"), "/readyz", 503, "draining\n"),
        (Known(ready="draining"), "/healthz", 200, "ok\n"),
        (Known(alive="stuck", ready="stuck"), "/healthz", 503, "stuck\n"),
        (Known(), "/metrics", 200, "up 1\n"),
        (Known(), "/", 404, "there are /metrics, /healthz and /readyz\n"),
        (Known(), "/metrics/", 404, "there are /metrics, /healthz and /readyz\n"),
    ],
)
def test_it_answers(health: Known, path: str, status: int, body: str) -> None:
    with open_at(health) as at:
        assert get(at, path) == (status, body)


def test_metrics_have_the_kind_of_their_format() -> None:
    with open_at() as at:
        assert b"Content-Type: text/plain; version=0.0.4\r\n" in said(at, b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "get"])
def test_only_get(method: str) -> None:
    with open_at() as at:
        answer = said(at, f"{method} /metrics HTTP/1.1\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.0 405 ")
    assert b"\r\nAllow: GET\r\n" in answer
    assert b"up 1" not in answer


@pytest.mark.parametrize(
    "head",
    [b"\r\n\r\n", b"GET\r\n\r\n", b"GET /metrics\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET / a HTTP/1.1\r\n\r\n"],
)
def test_what_is_no_request_is_told_so(head: bytes) -> None:
    with open_at() as at:
        assert said(at, head).startswith(b"HTTP/1.0 400 ")
        assert get(at, "/healthz")[0] == 200


def test_a_head_has_its_size() -> None:
    start, end = b"GET /healthz HTTP/1.1\r\nX: ", b"\r\n\r\n"
    with open_at() as at:
        assert said(at, start + b"a" * (HEAD_BYTES - len(start + end)) + end).startswith(b"HTTP/1.0 200 ")
        assert said(at, start + b"a" * (HEAD_BYTES - len(start + end) + 1) + end).startswith(b"HTTP/1.0 431 ")
        with socket.create_connection(at, PATIENCE_S) as line, contextlib.suppress(ConnectionError):
            for _ in range(1000):  # 65 MB, of which it reads a few kilobytes
                line.sendall(b"a" * 65536)
            pytest.fail("it went on reading")
        assert get(at, "/healthz")[0] == 200


def test_a_slow_request_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps no place: the limit is on all of it."""
    monkeypatch.setattr(ops, "REQUEST_S", 0.5)
    with open_at() as at, socket.create_connection(at, PATIENCE_S) as line:
        began_s = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began_s < PATIENCE_S:
                line.sendall(b"G")
                line.settimeout(0.05)
                try:
                    if (answer := line.recv(100)) is not None:
                        break
                except TimeoutError:
                    continue
        assert time.monotonic() - began_s < PATIENCE_S
        assert answer.startswith(b"HTTP/1.0 408 ")


def test_who_holds_every_place_loses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "REQUEST_S", 4.0)
    with open_at() as at, contextlib.ExitStack() as held:
        lines = [held.enter_context(socket.create_connection(at, PATIENCE_S)) for _ in range(AT_ONCE)]
        for line in lines:
            line.sendall(b"GET /")
        deadline_s = time.monotonic() + PATIENCE_S
        while said(at, b"GET /healthz HTTP/1.1\r\n\r\n") and time.monotonic() < deadline_s:
            time.sleep(0.01)  # until all of them have their place
        assert time.monotonic() < deadline_s  # then one more is hung up on: no thread more
        assert all(everything(line).startswith(b"HTTP/1.0 408 ") for line in lines)
        assert get(at, "/healthz") == (200, "ok\n")


def test_who_does_not_read_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "REQUEST_S", 0.5)
    large = Numbers(b"a" * 100_000_000)
    with open_at(numbers=large) as at, socket.create_connection(at, PATIENCE_S) as line:
        line.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        time.sleep(1.5)
        assert len(everything(line)) < len(large.body)


def test_a_defect_is_a_500() -> None:
    class Broken(Known):
        def alive(self) -> str:
            raise ZeroDivisionError("secret of the house")

    with open_at(Broken()) as at:
        assert get(at, "/healthz") == (500, "ZeroDivisionError\n")


def test_a_port_is_one_processs_and_free_again_after_it() -> None:
    first = Ops("127.0.0.1:0", Known(), Numbers())
    with pytest.raises(RemoteError, match="is the port taken"):
        Ops(first.address, Known(), Numbers())
    first.close()
    Ops(first.address, Known(), Numbers()).close()


@pytest.mark.parametrize("address", ["", "localhost", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:-1", "127.0.0.1:٣"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError, match="is no HOST:PORT"):
        Ops(address, Known(), Numbers())
