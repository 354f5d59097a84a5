"""A round over a real socket: what is counted on the wire is what the run's events say was sent, to the byte."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch

from atoll import rng
from atoll.algorithms.fedavg import fedavg
from atoll.data.examples import Tensors
from atoll.errors import FrameError
from atoll.local.binding import binding
from atoll.local.sgd import sgd
from atoll.models.mlp import mlp
from atoll.policy import Policy
from atoll.round import RunState, Shell, run, work
from atoll.store.journal import Ephemeral
from atoll.tasks.classification import classification
from atoll.testing.store import same_bits
from atoll.transforms.compress.int8 import int8
from atoll.transforms.pipe import pipe
from atoll.types import Algorithm, Answer, Assignment, ClientId, Examples, Failure, Local, Tree, Update
from atoll.wire import frame
from tests.core.small import Log, states

WAIT_S = 60.0
Clients = Mapping[ClientId, Mapping[str, Examples]]


class End:
    """One end of a connection that frames go through; it counts the bytes that the socket took and gave."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(WAIT_S)
        self.socket, self.sent, self.received = connection, 0, 0

    def send(self, value: Assignment | Update | Failure) -> None:
        left = [piece for piece in frame.write(value) if len(piece)]
        while left:
            taken = self.socket.sendmsg(left[:64])
            self.sent += taken
            while left and taken >= len(left[0]):
                taken -= len(left.pop(0))
            if left:
                left[0] = left[0][taken:]

    def receive(self, most_bytes: int = 1 << 20) -> Assignment | Update | Failure:
        data = bytearray(self._take(frame.START_BYTES))
        data += self._take(frame.front_bytes(data) - len(data))
        front = frame.read_front(data)
        front.check(None, most_bytes)
        data += self._take(front.payload_bytes + frame.CHECK_BYTES)
        return frame.read(data).value

    def _take(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            piece = self.socket.recv(min(count - len(found), 1 << 16))
            if not piece:
                raise EOFError("the other end has gone")
            found += piece
        self.received += len(found)
        return found


class Distant:
    """Engine whose clients answer at the other end of a socket."""

    def __init__(self, end: End) -> None:
        self._end, self._out = end, 0

    def available(self, clients: Sequence[ClientId]) -> Sequence[ClientId]:
        return clients

    def submit(self, assignments: Iterable[Assignment]) -> None:
        for assignment in assignments:
            self._end.send(assignment)
            self._out += 1

    def results(self, timeout_s: float) -> Iterator[Answer]:
        while self._out:
            self._out -= 1
            answer = self._end.receive()
            assert not isinstance(answer, Assignment)
            yield answer

    def acknowledge(self, update: Update) -> None: ...
    def refuse(self, answer: Answer) -> None: ...
    def cancel(self, round: int, work: str) -> None: ...
    def started(self, assignment: Assignment) -> bool:
        return True

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self._end.socket.close()


def clients_half(end: End, locals_: Mapping[str, Local[Any]], clients: Clients) -> None:
    """Answers until the server hangs up."""
    memories: dict[ClientId, Tree] = {}
    while True:
        try:
            assignment = end.receive()
        except EOFError:
            return
        assert isinstance(assignment, Assignment)
        local = locals_[assignment.work]
        answer, memory = work(assignment, local, clients[assignment.client]["train"], memories.get(assignment.client, {}))
        memories[assignment.client] = memory
        end.send(answer)


def federation() -> tuple[Algorithm[Any], Clients, Tree]:
    """Four clients, the last without examples, so that it fails, and a codec."""
    draw = torch.Generator().manual_seed(3)
    task = classification(mlp(6, hidden=[5], outputs=3))
    algorithm = pipe(fedavg(sgd(task, lr=0.1, batch_size=4)), int8())
    sizes = {"north": 9, "south": 5, "east": 12, "nobody": 0}
    clients: Clients = {
        ClientId(name): {"train": Tensors({"x": torch.randn(n, 6, generator=draw), "y": torch.arange(n) % 3})}
        for name, n in sizes.items()
    }
    return algorithm, clients, binding(task.module).state()


def test_the_socket_counts_what_the_events_tell() -> None:
    algorithm, clients, start = federation()
    here, there = (End(each) for each in socket.socketpair())
    far = threading.Thread(target=clients_half, args=(there, algorithm.local, clients), daemon=True)
    far.start()
    log, engine = Log(), Distant(here)
    nobody = ClientId("nobody")
    asked = [Assignment(r, nobody, "train", start, rng.seed(5, r, "train", nobody)) for r in range(2)]
    told = [Failure(r, nobody, "train", "no_data", "it holds no examples in its split 'train'") for r in range(2)]
    try:
        last = list(
            run(RunState(0, algorithm.init(start)), algorithm, Policy(), list(clients), 2, 5, Shell(engine, Ephemeral(), log))
        )[-1]
    finally:
        engine.close()
        far.join(WAIT_S)
    updates = [event.metrics for event in log.of("update")]
    assert len(updates) == 6
    assert [event.client for event in log.of("failure")] == ["nobody", "nobody"]
    down, up = (sum(each[name] for each in updates) for name in ("bytes_down", "bytes_up"))
    # The event of a failure tells no bytes: what it cost is added here
    assert here.sent == there.received == down + sum(frame.size(each).total for each in asked)
    assert there.sent == here.received == up + sum(frame.size(each).total for each in told)
    serially = states(algorithm, clients, 2, seed=5, state=RunState(0, algorithm.init(start)))[-1]
    assert same_bits(dict(algorithm.params(last.algorithm)), dict(algorithm.params(serially.algorithm))), "the wire changed bits"


def test_what_is_too_large_is_refused_before_it_is_received() -> None:
    near, far = (End(each) for each in socket.socketpair())
    with near.socket, far.socket:
        near.send(Assignment(0, ClientId("north"), "train", {"w": torch.zeros(2000)}, 7))
        with pytest.raises(FrameError, match="announces 8000 bytes of tensors; 1000 are allowed"):
            far.receive(most_bytes=1000)
        assert far.received < 100
