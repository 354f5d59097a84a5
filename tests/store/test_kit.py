"""The laws can fail: each of these stores breaks one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.store.journal import FileJournal
from atoll.store.memories import FileMemories, Kept
from atoll.testing.store import check_journal, check_memories
from atoll.types import Answer, ClientId, Tree, Update


class Unordered(FileJournal):
    def accepted(self, round: int) -> Iterator[Answer]:
        return reversed(list(super().accepted(round)))


class Forgetful(FileJournal):
    def accept(self, answer: Answer) -> None:
        if isinstance(answer, Update):
            super().accept(answer)


class Sharing(FileJournal):
    def hold(self, update: Update) -> Callable[[], Update]:
        return lambda: update


class Rounding(FileJournal):
    def accept(self, answer: Answer) -> None:
        if isinstance(answer, Update) and answer.weight != 1.0:
            answer = answer._replace(weight=round(answer.weight, 1) + 1e-15)
        super().accept(answer)


@pytest.mark.parametrize("broken", [Unordered, Forgetful, Sharing, Rounding])
def test_a_broken_journal_is_found(tmp_path: Path, broken: type[FileJournal]) -> None:
    with pytest.raises((AssertionError, KeyError)):
        check_journal(lambda: broken(tmp_path))


class Hasty(FileMemories):
    def propose(self, client: ClientId, round: int, work: str, memory: Tree) -> None:
        super().propose(client, round, work, memory)
        super().commit(client, round, work)


class Lossy(FileMemories):
    def recover(self, accepted: object) -> None:
        super().recover([])


class Shared(Kept):
    def get(self, client: ClientId) -> Tree:
        return self._committed.get(client, {})


class Merging(Kept):
    def get(self, client: ClientId) -> Tree:
        return super().get(ClientId(client.lower()))

    def propose(self, client: ClientId, round: int, work: str, memory: Tree) -> None:
        super().propose(ClientId(client.lower()), round, work, memory)

    def commit(self, client: ClientId, round: int, work: str) -> None:
        super().commit(ClientId(client.lower()), round, work)


@pytest.mark.parametrize(("broken", "durable"), [(Hasty, True), (Lossy, True)])
def test_broken_memories_in_files_are_found(tmp_path: Path, broken: type[FileMemories], durable: bool) -> None:
    with pytest.raises(AssertionError):
        check_memories(lambda: broken(tmp_path), durable=durable)


@pytest.mark.parametrize("broken", [Shared, Merging])
def test_broken_memories_in_the_process_are_found(broken: type[Kept]) -> None:
    with pytest.raises(AssertionError):
        check_memories(broken, durable=False)
