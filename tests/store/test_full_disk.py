"""A disk that is full, or that may not be written: a typed error that names the folder, and nothing half-done left behind."""

from __future__ import annotations

import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from atoll.errors import StoreError
from atoll.store.journal import FileJournal
from atoll.store.memories import FileMemories
from atoll.store.runs import Store
from atoll.testing.store import same_bits
from atoll.types import ClientId, Event, Update

LIKE = {"w": torch.zeros(50_000)}  # 200 kB


def update(number: int) -> Update:
    return Update(0, ClientId(f"c{number}"), "train", {"w": torch.full((50_000,), float(number))}, 1.0, {})


def until_it_fails(act: Callable[[int], object]) -> None:
    for number in range(10_000):
        act(number)


def test_a_journal_on_a_full_disk(small: Path) -> None:
    journal = FileJournal(small / "journal")
    journal.begin(0)
    with pytest.raises(StoreError, match=rf"the disk that holds {small}/journal/00000000 is full: 20\d{{4}} bytes"):
        until_it_fails(lambda number: journal.accept(update(number)))
    found = list(FileJournal(small / "journal").accepted(0))
    assert 1 < len(found) < 6
    assert same_bits(found, [update(number) for number in range(len(found))])
    assert not list(small.glob("**/*.tmp")), "the room that the failed write took is not given back"


def test_memories_on_a_full_disk(small: Path) -> None:
    memories = FileMemories(small / "memory")
    memories.propose(ClientId("north"), 0, "train", LIKE)
    memories.commit(ClientId("north"), 0, "train")
    (small / "filler").write_bytes(b"x" * 700_000)
    with pytest.raises(StoreError, match="is full"):
        memories.propose(ClientId("north"), 1, "train", {"w": torch.ones(50_000)})
    memories.commit(ClientId("north"), 1, "train")
    assert same_bits(memories.get(ClientId("north")), LIKE)


def test_a_run_on_a_full_disk_keeps_its_last_checkpoint(small: Path) -> None:
    with Store(small) as store:

        def work(round: int) -> None:
            run.sink.emit(Event("round", round, metrics={"loss": 1.0}))
            run.checkpoint(round + 1, {"w": torch.full((50_000,), float(round))})
            (small / f"filler{round}").write_bytes(b"x" * 50_000)

        with pytest.raises(StoreError, match="is full"), store.create("a", {}, seed=0, rounds=99) as run:
            until_it_fails(work)
        for filler in small.glob("filler*"):
            filler.unlink()
        with store.open("last") as run:
            found = run.latest(LIKE)
            assert found is not None
            assert found[1]["w"][0].item() == found[0] - 1
            assert found[0] >= 2


def test_a_database_on_a_full_disk(small: Path) -> None:
    with Store(small) as store:
        run = store.create("a", {}, seed=0, rounds=1)
        with open(small / "filler", "wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
            until_it_fails(lambda _: filler.write(b"x" * 512))
        with pytest.raises(StoreError, match=r"the database .*atoll.db can't be used: .*full"):
            until_it_fails(lambda number: run.note(f"{number}", "x" * 10_000))
        (small / "filler").unlink()
        run.note("after", "there is room again")
        run.finish("interrupted")
        assert store.record("last").notes[-1].title == "after"
        run.close()


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path)
    journal.begin(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StoreError, match=rf"the disk that holds {tmp_path}/00000000 is full: 20\d{{4}} bytes"):
            journal.accept(update(0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert list(journal.accepted(0)) == []


def test_a_disk_that_may_only_be_read(small: Path) -> None:
    with Store(small) as store:
        run = store.create("a", {}, seed=0, rounds=1)
        run.journal.begin(0)
        run.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    with pytest.raises(StoreError, match="Read-only file system; give a folder that may be written"):
        run.journal.accept(update(0))
    with pytest.raises(StoreError, match="give a folder that may be written"):
        Store(small / "more")
    with pytest.raises(StoreError, match=r"atoll.db can't be used"):
        Store(small).create("b", {}, seed=0, rounds=1)
