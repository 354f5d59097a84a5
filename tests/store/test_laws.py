"""Every store, journal and memory of ours obeys the laws of atoll.testing.store."""

from pathlib import Path

from atoll.store.journal import Ephemeral, FileJournal
from atoll.store.memories import FileMemories, Kept
from atoll.store.runs import Store
from atoll.testing.store import check_journal, check_memories, check_store


def test_journal_in_files(tmp_path: Path) -> None:
    check_journal(lambda: FileJournal(tmp_path / "journal"))


def test_journal_that_keeps_a_round_more_and_flushes(tmp_path: Path) -> None:
    check_journal(lambda: FileJournal(tmp_path / "journal", keep=1, durable=True))


def test_journal_of_a_run_without_a_store() -> None:
    check_journal(Ephemeral, durable=False)


def test_memories_in_files(tmp_path: Path) -> None:
    check_memories(lambda: FileMemories(tmp_path / "memory"))


def test_memories_in_the_process() -> None:
    check_memories(Kept, durable=False)


def test_store_with_sqlite(tmp_path: Path) -> None:
    check_store(lambda: Store(tmp_path / "runs"))
