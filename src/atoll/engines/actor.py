"""One worker on a Ray cluster: the actor that holds folds and data, and the handle that the driver has of it."""

from __future__ import annotations

import os
import platform
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple, TypeAlias

import torch

from atoll.compute.choice import Way, compute_by
from atoll.engines.cluster import ray_package
from atoll.engines.parcel import Packed, Parcel, pack, unpack, unwrap
from atoll.engines.serial import examples_of, no_data
from atoll.types import Answer, Assignment, Failure, Tree, Trip, Update

Ask: TypeAlias = "tuple[Assignment, int, Packed | None]"  # without its tree, which of the trees beside it, memory


class Reply(NamedTuple):
    """A worker's answer: the trees beside what they belong to, as one buffer each."""

    answer: Answer  # an update without its tree
    tree: Packed | None
    memory: Packed | None  # None: the client remembers what it did


class Actor:
    """Lives in a process of the cluster; Ray makes it and calls its methods, `stay` in a thread of its own."""

    def __init__(self, threads: int, way: Way) -> None:
        self._threads, self._compute = threads, compute_by(way)

    def place(self) -> tuple[str, dict[str, str]]:
        """Where it is, for a person; and what it runs on, which must be what the driver runs on."""
        return f"process {os.getpid()} at {platform.node()}", versions()

    def load(self, parcel: Parcel) -> None:
        """The locals and the clients."""
        self._locals, self._clients = unwrap(parcel)

    def stay(self) -> None:
        """Never returns: the call fails when the process ends, so that a death is noticed without asking."""
        threading.Event().wait()

    def work(self, asks: Sequence[Ask], *trees: Packed) -> tuple[list[Reply] | Exception, int]:
        """Replies in the order of the asks, which are of one work; and how many of it are computed as one."""
        torch.set_num_threads(self._threads)
        read = [unpack(each) for each in trees]
        try:
            return self._replies(asks, read)
        except Exception as error:  # of the federation, not of a client: the driver raises it
            return error, 1

    def _replies(self, asks: Sequence[Ask], trees: Sequence[Tree]) -> tuple[list[Reply], int]:
        local, at_once, found, trips = self._locals[asks[0][0].work], 1, dict[int, Reply](), dict[int, Trip]()
        for i, (assignment, which, memory) in enumerate(asks):
            examples = examples_of(self._clients, local, assignment.client)
            if examples is None:
                found[i] = Reply(no_data(assignment, local), None, None)
                continue
            trips[i] = Trip(assignment._replace(tree=trees[which]), local, examples, unpack(memory) if memory else {})
            if len(trips) == 1:
                at_once = self._compute.ready(trips[i])
        for (i, trip), (answer, new) in zip(trips.items(), self._run(list(trips.values()), at_once), strict=True):
            if isinstance(answer, Failure):
                found[i] = Reply(answer, None, None)
            else:
                remembers = pack(new) if new or trip.memory else None
                found[i] = Reply(answer._replace(tree={}), pack(answer.tree), remembers)
        return [found[i] for i in range(len(asks))], at_once

    def _run(self, trips: Sequence[Trip], at_once: int) -> Iterator[tuple[Answer, Tree]]:
        for start in range(0, len(trips), at_once):
            yield from self._compute.run(trips[start : start + at_once])


class Call(NamedTuple):
    """Work under way at a worker."""

    ref: Any
    asks: list[Assignment]
    unwanted: set[int]  # which of them nobody waits for any more

    def wanted(self) -> list[Assignment]:
        return [a for i, a in enumerate(self.asks) if i not in self.unwanted]


class Handle:
    """The driver's side of one actor: owns it, and the references to what it owes."""

    def __init__(self, resources: Mapping[str, float], threads: int, way: Way, parcel: Any) -> None:
        ray = ray_package()
        made = ray.remote(
            num_cpus=resources["CPU"],
            num_gpus=resources["GPU"],
            max_restarts=0,  # the engine makes another one, where there is room
            scheduling_strategy="SPREAD",
            concurrency_groups={"watch": 1},
        )(Actor)
        self.actor = made.remote(threads, way)
        self.placing: Any = self.actor.place.remote()  # None once it has answered, and so for `loading`
        self.loading: Any = self.actor.load.remote(parcel)
        self.watch = self.actor.stay.options(concurrency_group="watch").remote()
        self.calls: deque[Call] = deque()
        self.where = ""

    @property
    def ready(self) -> bool:
        return self.placing is None and self.loading is None

    def refs(self) -> Iterator[Any]:
        """All that may be heard of it: answers before its death, as an answer that came is not asked for again."""
        yield from (ref for ref in (self.placing, self.loading) if ref is not None)
        yield from (call.ref for call in self.calls)
        yield self.watch

    def send(self, asks: Sequence[tuple[Assignment, Packed | None]], trees: Sequence[Any], which: Sequence[int]) -> None:
        told = [(a._replace(tree={}), i, memory) for (a, memory), i in zip(asks, which, strict=True)]
        self.calls.append(Call(self.actor.work.remote(told, *trees), [a for a, _ in asks], set()))

    def end(self) -> None:
        ray_package().kill(self.actor, no_restart=True)


def opened(reply: Reply) -> tuple[Answer, Tree | None]:
    """The answer with its tree, and the memory: views of what Ray holds until they are let go."""
    answer = reply.answer
    if isinstance(answer, Update) and reply.tree is not None:
        answer = answer._replace(tree=unpack(reply.tree))
    return answer, None if reply.memory is None else unpack(reply.memory)


def versions() -> dict[str, str]:
    """What must be the same at both ends for the same bits."""
    try:
        own = version("atoll")
    except PackageNotFoundError:  # run from its sources
        own = "unknown"
    return {"python": platform.python_version(), "torch": torch.__version__, "atoll": own}
