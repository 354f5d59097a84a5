"""One resident worker process: the handle that the parent has, and the loop that the child runs.

Chunks of assignments go out, several in one message where they are small; each answer comes back as it is made.
"""

from __future__ import annotations

import contextlib
import os
import pickle  # between this process and its own fork; never across a trust boundary
import signal
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch

from atoll.engines.shared import Arena, Forms, Placed, Told
from atoll.fold import verdict
from atoll.interfaces import Compute
from atoll.types import Answer, Assignment, ClientId, Examples, Failure, Local, Tree, Trip, Update

_LENGTH = struct.Struct("!I")  # before each reply
_PROMPT_BYTES = 16 << 20  # slots of this size are given back at once, smaller ones with the next message


@dataclass(slots=True, eq=False)
class Chunk:
    """Assignments of one work that a worker computes as one."""

    asked: list[Assignment]
    size: float  # examples of all
    seconds: float | None = None  # that it is predicted to take


@dataclass(slots=True)
class Doing:
    """One assignment at a worker."""

    assignment: Assignment
    chunk: Chunk
    portion: int  # the message that it went out with
    posts: list[Placed]
    wanted: bool = True


class Reply(NamedTuple):
    """What a worker says of one assignment."""

    doing: Doing
    answer: Answer | Exception | None  # None: no longer wanted
    memory: Tree | None  # the client's new one
    slots: list[int]  # of the worker's own arena, in which both lie
    spent_s: float


class Seat(NamedTuple):
    """What every worker that sits there is forked with."""

    locals_: Mapping[str, Local[Any]]
    clients: Mapping[ClientId, Mapping[str, Examples]]
    board: Arena
    compute: Compute
    threads: int
    core: int | None  # to be pinned to


class Worker:
    """A forked process with a pipe (a pair of sockets), and an arena of its own that it writes updates into."""

    def __init__(self, seat: Seat, siblings: Sequence[Worker], knows: frozenset[str]) -> None:
        context = get_context("fork")
        self.seat, self.knows = seat, knows  # the works that were made ready before the fork
        self.arena, self._forms = Arena(), Forms()
        self.pipe, child = socket.socketpair()
        self.gone = False  # it has closed its end
        self._portions, self._inbox = 0, bytearray()
        self.doing: deque[Doing] = deque()  # in order: a chunk that is being worked on, and those that wait behind it
        self._freed: list[int] = []
        self.interrupted = False  # killed by us
        ours = [self.pipe, *(w.pipe for w in siblings)]
        self.process = context.Process(target=_serve, args=(child, ours, seat, self.arena), daemon=True)
        self.process.start()
        child.close()

    @property
    def epitaph(self) -> str:
        code = self.process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def in_hand_s(self) -> float | None:
        """Predicted seconds of what it has; None where that is not known."""
        total = 0.0
        for doing in self.doing:
            if doing.chunk.seconds is None:
                return None
            total += doing.chunk.seconds / len(doing.chunk.asked)
        return total

    def send(self, portion: Sequence[tuple[Chunk, list[list[Placed]]]]) -> None:
        """Give it chunks, each with the places of every assignment's tree and memory."""
        told = []
        self._portions += 1
        for chunk, posts in portion:
            self.doing.extend(Doing(a, chunk, self._portions, p) for a, p in zip(chunk.asked, posts, strict=True))
            ids = [tuple(a._replace(tree={})) for a in chunk.asked]
            told.append([(i, [self._forms.tell(p) for p in places]) for i, places in zip(ids, posts, strict=True)])
        self._tell(told)

    def receive(self) -> Iterator[Reply]:
        """What it has said since, without a wait."""
        try:
            while data := self.pipe.recv(1 << 16, socket.MSG_DONTWAIT):
                self._inbox += data
                if len(data) < 1 << 16:
                    break
            else:
                self.gone = True
        except BlockingIOError:
            pass
        except OSError:
            self.gone = True
        start = 0
        while len(self._inbox) >= start + _LENGTH.size:
            ends = start + _LENGTH.size + _LENGTH.unpack_from(self._inbox, start)[0]
            if ends > len(self._inbox):
                break
            yield self._reply(*pickle.loads(self._inbox[start + _LENGTH.size : ends]))
            start = ends
        del self._inbox[:start]

    def _reply(self, fields: tuple[Any, ...] | Exception, told: Told | None, remembered: Told | None, spent_s: float) -> Reply:
        doing = self.doing.popleft()
        memory, slots = None, []
        answer: Answer | Exception | None
        if isinstance(fields, Exception):
            answer = fields
        elif told is None:
            answer = Failure(*fields)
        else:
            placed = self._forms.hear(told)
            slots.append(placed.offset)
            answer = Update(*fields)._replace(tree=self.arena.read(placed))
        if remembered is not None:
            placed = self._forms.hear(remembered)
            slots.append(placed.offset)
            memory = self.arena.read(placed)
        if not doing.wanted and not isinstance(answer, Exception):
            answer = None
        return Reply(doing, answer, memory, slots, spent_s)

    def free(self, slots: list[int], size_bytes: int) -> None:
        """Give slots of its arena back."""
        self._freed += slots
        if self._freed and size_bytes >= _PROMPT_BYTES:
            self._tell([])

    def unwant(self, round: int, work: str) -> None:
        for doing in self.doing:
            if (doing.assignment.round, doing.assignment.work) == (round, work):
                doing.wanted = False

    def interrupt(self, round: int, client: ClientId, work: str) -> None:
        """Kill the process if it still works on what nobody waits for any more, such as a hung client's script."""
        at = self.doing[0].assignment if self.doing else None
        if at is not None and (at.round, at.client, at.work) == (round, client, work):
            self.doing[0].wanted, self.interrupted = False, True
            self.process.kill()

    def abandon(self) -> tuple[list[Doing], list[Doing]]:
        """The process is dead: what it was computing, the unanswered rest of a chunk, and what only waited behind that."""
        self.process.join()
        doing = list(self.doing)
        waiting = [d for d in doing if d.chunk is not doing[0].chunk]
        self.doing.clear()
        return doing[: len(doing) - len(waiting)], waiting

    def dismiss(self) -> None:
        """Ask it to end when it has done what it is doing."""
        self._tell(None)

    def close(self, timeout_s: float) -> None:
        """Wait that long for it to end, then kill it: nobody waits for what it does."""
        self.process.join(timeout_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()

    def _tell(self, chunks: object) -> None:
        freed, self._freed = self._freed, []
        with contextlib.suppress(OSError):  # dead: its sentinel says so
            self.pipe.sendall(pickle.dumps((freed, chunks), pickle.HIGHEST_PROTOCOL))


def _serve(pipe: socket.socket, parents: Sequence[socket.socket], seat: Seat, arena: Arena) -> None:
    """The child: work what comes until the parent closes the pipe or dies."""
    for end in parents:  # inherited by the fork; while a copy is open, the parent's death would go unnoticed
        end.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    if seat.core is not None:
        os.sched_setaffinity(0, {seat.core})
    torch.set_num_threads(seat.threads)
    threading.Thread(target=_outlive_no_parent, args=(os.getppid(),), daemon=True).start()
    forms, inbox = Forms(), pipe.makefile("rb")
    while True:
        try:
            freed, chunks = pickle.load(inbox)
        except (EOFError, ConnectionResetError):
            os._exit(0)
        if chunks is None:
            os._exit(0)
        for offset in freed:
            arena.free(offset)
        for chunk in chunks:
            trips = [_trip(seat, Assignment(*ids), [forms.hear(told) for told in posts]) for ids, posts in chunk]
            for reply in _replies(trips, seat.compute, arena, forms):
                data = pickle.dumps(reply, pickle.HIGHEST_PROTOCOL)
                pipe.sendall(_LENGTH.pack(len(data)) + data)


def _outlive_no_parent(parent: int) -> None:
    """A closed pipe is noticed between two assignments only, and one may take hours."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(0)


def _trip(seat: Seat, assignment: Assignment, posts: list[Placed]) -> Trip:
    local, known = seat.locals_[assignment.work], seat.board.read(posts[1]) if len(posts) > 1 else {}
    examples = seat.clients[assignment.client][local.batching.split]
    return Trip(assignment._replace(tree=seat.board.read(posts[0])), local, examples, known)


def _replies(
    trips: Sequence[Trip], compute: Compute, arena: Arena, forms: Forms
) -> Iterator[tuple[tuple[Any, ...] | Exception, Told | None, Told | None, float]]:
    """For each trip: the answer's fields without its tree, where its tree and the new memory lie, seconds spent."""
    done, began = 0, time.perf_counter()
    try:
        for trip, (answer, memory) in zip(trips, compute.run(trips), strict=True):
            told = remembered = None
            if isinstance(answer, Update):
                answer = verdict(answer, None)  # here, while the update is still in this core's cache
            if isinstance(answer, Update):
                told = forms.tell(arena.write(answer.tree))
                answer = answer._replace(tree={}, checked=True)
                if memory or trip.memory:
                    remembered = forms.tell(arena.write(memory))
            ended, before = time.perf_counter(), began
            began = ended
            yield tuple(answer), told, remembered, ended - before
            done += 1
    except Exception as error:  # of the federation, not of a client: the parent raises it
        for _ in trips[done:]:
            yield error, None, None, 0.0
