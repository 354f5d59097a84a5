"""One resident worker process: the handle that the parent has, and the loop that the child runs."""

from __future__ import annotations

import contextlib
import os
import pickle  # between this process and its own fork; never across a trust boundary
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import torch

from atoll.engines.shared import Arena, Placed
from atoll.round import work
from atoll.types import Answer, Assignment, ClientId, Examples, Failure, Local, Tree

# What a reply is: the assignment, the board's slots that it read, the answer (None: no longer wanted), the client's
# new memory, and the slots of the worker's own arena that both lie in.
Reply: TypeAlias = "tuple[Assignment, list[Placed], Answer | Exception | None, Tree | None, list[Placed]]"


class Worker:
    """A forked process with a pipe, and an arena of its own that it writes updates into."""

    def __init__(
        self,
        locals_: Mapping[str, Local[Any]],
        clients: Mapping[ClientId, Mapping[str, Examples]],
        board: Arena,
        threads: int,
        siblings: Sequence[Worker],
    ) -> None:
        context = get_context("fork")
        self.arena = Arena()
        self.pipe, child = context.Pipe()
        self.doing: deque[tuple[Assignment, list[Placed], bool]] = deque()  # in order; False: no longer wanted
        ours = [self.pipe, *(w.pipe for w in siblings)]
        self.process = context.Process(
            target=_serve, args=(child, ours, locals_, clients, board, self.arena, threads), daemon=True
        )
        self.process.start()
        child.close()

    @property
    def epitaph(self) -> str:
        code = self.process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def send(self, assignment: Assignment, posts: list[Placed]) -> None:
        self.doing.append((assignment, posts, True))
        self._tell((assignment._replace(tree={}), posts))

    def receive(self, speaks: bool) -> Reply | None:
        """The next reply, of which `speaks` says that it is there; None when the process is dead and has no more to say."""
        try:
            if not speaks and not self.pipe.poll():
                return None
            answer, placed, memory = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):  # OSError: it died in the middle of a message
            return None
        assignment, posts, wanted = self.doing.popleft()
        slots = [p for p in (placed, memory) if p is not None]
        if placed is not None:
            answer = answer._replace(tree=self.arena.read(placed))
        if not wanted and not isinstance(answer, Exception):
            answer = None
        return assignment, posts, answer, None if memory is None else self.arena.read(memory), slots

    def free(self, slots: list[Placed]) -> None:
        if slots:
            self._tell(slots)

    def unwant(self, round: int, work: str) -> None:
        self.doing = deque((a, p, w and (a.round, a.work) != (round, work)) for a, p, w in self.doing)

    def interrupt(self, round: int, client: ClientId, work: str) -> None:
        """Kill the process if it still works on what nobody waits for any more, such as a hung client's script."""
        if self.doing and (self.doing[0][0].round, self.doing[0][0].client, self.doing[0][0].work) == (round, client, work):
            self.doing[0] = (*self.doing[0][:2], False)
            self.process.kill()

    def abandon(self) -> list[tuple[Assignment, list[Placed], bool]]:
        """The process is dead: what it left undone."""
        self.process.join()
        undone, self.doing = list(self.doing), deque()
        return undone

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

    def _tell(self, message: object) -> None:
        with contextlib.suppress(OSError):  # dead: `receive` says so
            self.pipe.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def _serve(
    pipe: Connection,
    parents: Sequence[Connection],
    locals_: Mapping[str, Local[Any]],
    clients: Mapping[ClientId, Mapping[str, Examples]],
    board: Arena,
    arena: Arena,
    threads: int,
) -> None:
    """The child: work what comes until the parent closes the pipe or dies."""
    for end in parents:  # inherited by the fork; while a copy is open, the parent's death would go unnoticed
        end.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    torch.set_num_threads(threads)
    threading.Thread(target=_outlive_no_parent, args=(os.getppid(),), daemon=True).start()
    while True:
        try:
            message = pickle.loads(pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            os._exit(0)
        if message is None:
            os._exit(0)
        if isinstance(message, list):
            for placed in message:
                arena.free(placed)
            continue
        assignment, posts = message
        answer = _answer(assignment, posts, locals_, clients, board, arena)
        pipe.send_bytes(pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))


def _outlive_no_parent(parent: int) -> None:
    """A closed pipe is noticed between two assignments only, and one may take hours."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(0)


def _answer(
    assignment: Assignment,
    posts: list[Placed],
    locals_: Mapping[str, Local[Any]],
    clients: Mapping[ClientId, Mapping[str, Examples]],
    board: Arena,
    arena: Arena,
) -> tuple[Answer | Exception, Placed | None, Placed | None]:
    local, known = locals_[assignment.work], board.read(posts[1]) if len(posts) > 1 else {}
    examples = clients[assignment.client][local.batching.split]
    try:
        answer, memory = work(assignment._replace(tree=board.read(posts[0])), local, examples, known)
    except Exception as error:  # of the federation, not of a client: the parent raises it
        return error, None, None
    if isinstance(answer, Failure):
        return answer, None, None
    placed = arena.write(answer.tree)
    return answer._replace(tree={}), placed, arena.write(memory) if memory or known else None
