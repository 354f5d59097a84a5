"""Laws of what keeps a run: a store, a journal, client memory.

Each kit is given how to open the thing, and opens it anew wherever a process would have died. A law that does not
hold is an AssertionError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from atoll.errors import ConfigError, StoreError, UnknownName
from atoll.interfaces import Journal, Memories
from atoll.store.runs import Store
from atoll.tree import Flat, pack
from atoll.types import Answer, Assignment, ClientId, Event, Failure, Tree, Update

NORTH, SOUTH = ClientId("north"), ClientId("../south /\u00e9\U0001f3dd")


class TwoPhase(Memories, Protocol):
    """Client memory that can be settled after a kill."""

    def recover(self, accepted: Any) -> None: ...


def same_bits(a: Any, b: Any) -> bool:
    """Two values agree to the last bit: kinds, names, shapes, dtypes, and not-a-numbers too.

    >>> same_bits((1.0, {"w": torch.tensor(float("nan"))}), (1.0, {"w": torch.tensor(float("nan"))}))
    True
    >>> same_bits(0.0, -0.0)
    False
    """
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape)):
            return False
        return a.contiguous().reshape(-1).view(torch.uint8).equal(b.contiguous().reshape(-1).view(torch.uint8))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return isinstance(a, Flat) == isinstance(b, Flat) and list(a) == list(b) and all(same_bits(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(same_bits(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or (a, math.copysign(1, a)) == (b, math.copysign(1, b))
    return type(a) is type(b) and a == b


def trees() -> list[Tree]:
    """Trees that are hard to keep: half precision, 0-d, empty, integers, truth values, not-a-number, flat."""
    # Two not-a-numbers with a payload, and the smallest number above zero.
    odd = torch.tensor([0x7FC12345, 0xFF800001 - 2**32, 1], dtype=torch.int32).view(torch.float32)
    whole = {"n": torch.tensor(2**62), "u": torch.tensor([255, 0]).byte(), "mask": torch.tensor([True, False])}
    return [
        {"w": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor(0.1)},
        {"h": torch.tensor([1.5, -0.0, float("inf")], dtype=torch.bfloat16), "f": torch.ones(3, dtype=torch.float16)},
        {**whole, "empty": torch.zeros(0, 4)},
        {"odd": odd, "d": torch.tensor([math.pi], dtype=torch.float64)},
        pack({"w": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), "b": torch.zeros(0), "c": torch.ones(())}),
        {"a/b.c'": torch.ones(1), "": torch.zeros(1), "__metadata__": torch.ones(2)},
        {},
    ]


def answers(round: int) -> list[Answer]:
    """One answer of every kind, among them an update that began in an earlier round."""
    updates: list[Answer] = [
        Update(round - i % 2, ClientId(f"{NORTH}{i}"), "train", tree, 0.1 + i, {"loss": 1 / 3 - i, "nan": math.nan}, i % 2)
        for i, tree in enumerate(trees())
    ]
    return [*updates[:2], Failure(round, SOUTH, "train", "lost", "no answer in 3 s"), *updates[2:]]


def check_journal(reopen: Callable[[], Journal], *, durable: bool = True) -> None:
    """Accepted answers come back in order and to the bit, in this process and after it; held updates too.

    `reopen` opens the journal over one place, first empty. `durable=False` is for one that forgets on purpose.
    """
    journal, given = reopen(), answers(3)
    journal.begin(3)
    assert list(journal.accepted(3)) == [], "a round that has just begun has no answers"
    held: list[tuple[Update, Callable[[], Update]]] = []
    for answer in given:
        journal.accept(answer)
        if isinstance(answer, Update):
            kept = answer._replace(tree={name: x.clone() for name, x in answer.tree.items()})
            kept = kept._replace(tree=pack(kept.tree) if isinstance(answer.tree, Flat) else kept.tree)
            held.append((kept, journal.hold(answer)))
            for x in answer.tree.values():
                x.zero_()  # buffers are another's once an update is acknowledged
    for kept, give_back in held:
        assert same_bits(give_back(), kept), f"the held update of {kept.client} came back changed"
    if not durable:
        assert list(reopen().accepted(3)) == []
        return
    for again in (journal, reopen(), reopen()):
        again.begin(3)
        found = list(again.accepted(3))
        assert same_bits(found, answers(3)), "answers changed, or their order did"
        assert list(again.places(3)) == [(a.round, a.client, a.work) for a in found], "places are not those of the answers"
        for answer in found:
            if isinstance(answer, Update):
                assert same_bits(again.hold(answer)(), answer), "a replayed update can't be held"
    later = Failure(3, NORTH, "train", "error", "once more")
    again.accept(later)
    assert list(reopen().accepted(3))[-1] == later, "an answer accepted after a restart is not the last"
    again.begin(4)
    assert list(again.accepted(4)) == [], "answers of an earlier round count in this one"
    again.begin(9)
    assert list(reopen().accepted(3)) == [], "answers of a round long past take room"


def check_memories(reopen: Callable[[], TwoPhase], *, durable: bool = True) -> None:
    """A proposal counts once it is committed, not before; a kill leaves the old memory or the new.

    `reopen` opens the memories over one place, first empty. `durable=False` is for memories of one process.
    """
    memories = reopen()
    for client in (NORTH, SOUTH, ClientId(""), ClientId("x" * 500), ClientId("NORTH"), ClientId("north.")):
        assert memories.get(client) == {}
        memories.commit(client, 0, "train")  # nothing was proposed
        for round, memory in enumerate(trees()):
            before = memories.get(client)
            mine = {name: x.clone() for name, x in memory.items()}
            memories.propose(client, round, "train", pack(mine) if isinstance(memory, Flat) else mine)
            for x in mine.values() if not isinstance(memory, Flat) else ():
                x.zero_()
            assert same_bits(memories.get(client), before), "a proposal counts before it is committed"
            memories.commit(client, round, "other")
            assert same_bits(memories.get(client), before), "the commit of other work commits this"
            memories.commit(client, round, "train")
            memories.commit(client, round, "train")  # a replayed round says it again
            assert same_bits(memories.get(client), memory), "what was committed is not what was proposed"
            for x in memories.get(client).values():
                x.zero_()
            assert same_bits(memories.get(client), memory), "a client that works in place changed what is kept"
        memories.propose(client, 99, "train", {"client": torch.tensor(list(client.encode()))})
        memories.commit(client, 99, "train")
    for client in (NORTH, ClientId("NORTH"), ClientId("north."), SOUTH):
        assert bytes(memories.get(client)["client"].tolist()).decode() == client, "two clients share a memory"
    if durable:
        _check_recovery(reopen)


def _check_recovery(reopen: Callable[[], TwoPhase]) -> None:
    before, after = {"c": torch.zeros(2)}, {"c": torch.ones(2)}
    memories = reopen()
    for client in (NORTH, SOUTH):
        memories.propose(client, 100, "train", before)
        memories.commit(client, 100, "train")
        memories.propose(client, 101, "train", after)
    memories = reopen()
    memories.recover([Update(101, NORTH, "train", {}, 1.0, {}), Failure(101, SOUTH, "train", "error", "")])
    assert same_bits(memories.get(NORTH), after), "the memory of an accepted update was lost"
    assert same_bits(memories.get(SOUTH), before), "the memory of an update that was not accepted counts"
    memories.commit(SOUTH, 101, "train")
    assert same_bits(memories.get(SOUTH), before), "a proposal outlived the recovery that dropped it"
    memories.propose(NORTH, 102, "train", {})
    memories = reopen()
    memories.recover([Update(102, NORTH, "train", {}, 1.0, {})])
    assert memories.get(NORTH) == {}, "a client could not forget"


def check_store(reopen: Callable[[], Store]) -> None:
    """Runs are found, locked, resumed to the bit, and their record counts nothing twice.

    `reopen` opens the store over one place, first empty.
    """
    id = _check_work(reopen)
    _check_resume(reopen, id)
    with reopen() as store:
        record = store.record(id)
        assert (record.status, record.seed, record.rounds) == ("finished", 2**70, 4)
        assert record.config == {"lr": 0.1, "deep": [1, None]}
        assert record.by_client("train", "loss") == {NORTH: [(0, 2.0)], SOUTH: [(1, 1.0)]}, "a replayed round counts twice"
        assert math.isnan(record.by_client("train", "nan")[NORTH][0][1])
        assert record.global_series("", "seconds") == [(0, 1.0)]
        assert record.failures == (), "a failure of a round that came again is still told"
        assert [tuple(note) for note in record.notes] == [("before", "or not")]
        assert record.created <= (record.started or "") <= (record.finished or "")
        store.create("laws", {}, seed=0, rounds=1).close()
        assert next(each.name for each in store.list()) == "laws", "the newest run does not come first"
        _refused(ConfigError, lambda: store.open("laws"[:3]))


_LIKE = {"w": torch.zeros(3, dtype=torch.bfloat16), "n": 0}
_VALUE = {"w": torch.tensor([0.1, math.nan, -0.0], dtype=torch.bfloat16), "n": 1}


def _check_work(reopen: Callable[[], Store]) -> str:
    """One round, a checkpoint, half a round, and no end: as a killed process leaves it."""
    with reopen() as store:
        assert store.list() == []
        run = store.create("Laws of \u00c5land", {"lr": 0.1, "deep": [1, None]}, seed=2**70, rounds=4)
        run.start()
        assert run.latest(_LIKE) is None
        _refused(StoreError, lambda: store.open(run.id))
        run.sink.emit(Event("update", 0, "train", NORTH, {"loss": 2.0, "nan": math.nan}))
        run.sink.emit(Event("round", 0, metrics={"seconds": 1.0}))
        run.checkpoint(1, _VALUE)
        run.sink.emit(Event("update", 1, "train", SOUTH, {"loss": 1.0}))
        run.sink.emit(Event("failure", 1, "train", NORTH, text="lost\x00 it"))
        run.journal.begin(1)
        run.journal.accept(Update(1, SOUTH, "train", trees()[1], 1.0, {}))
        run.memories.propose(SOUTH, 1, "train", trees()[1])
        run.note("before", "To be")
        run.sink.flush()
        assert store.record(run.id).status == "running"
        assert len(store.record(run.id).failures) == 1
        run.close()
        return run.id


def _check_resume(reopen: Callable[[], Store], id: str) -> None:
    with reopen() as store:
        assert [each.status for each in store.list()] == ["interrupted"]
        for which in (id, "last", id[:-1]):
            store.open(which).close()
        _refused(UnknownName, lambda: store.open("nothing-of-the-kind"))
        with store.open("last") as run:
            assert same_bits(run.latest(_LIKE), (1, _VALUE)), "the state of the checkpoint came back changed"
            (answer,) = run.journal.accepted(1)
            assert isinstance(answer, Update), "an accepted answer was lost"
            assert same_bits(answer.tree, trees()[1])
            assert same_bits(run.memories.get(SOUTH), trees()[1]), "the memory of an accepted update was lost"
            run.sink.emit(Event("update", 1, "train", SOUTH, {"loss": 1.0}))
            flying = (Assignment(0, NORTH, "train", trees()[4], 2**63),) * 2
            run.checkpoint(2, {**_VALUE, "in_flight": flying})
            again = run.latest({**_LIKE, "in_flight": ()})
            assert again is not None
            assert same_bits(again[1]["in_flight"], flying), "an assignment came back changed"
            run.note("before", "or not")
            run.finish("finished")


def _refused(kind: type[Exception], act: Callable[[], object]) -> None:
    try:
        act()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__} was raised")
