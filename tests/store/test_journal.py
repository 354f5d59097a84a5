"""What a journal of files keeps, for how long, and what it says when it can't."""

from pathlib import Path

import pytest
import torch

from atoll.errors import StoreError
from atoll.store.journal import FileJournal
from atoll.types import ClientId, Failure, Update


def update(round: int, client: str = "north") -> Update:
    return Update(round, ClientId(client), "train", {"w": torch.full((4,), float(round))}, 8.0, {"loss": 0.5})


def test_a_round_begun_again_keeps_its_answers_and_goes_on_counting(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path)
    journal.begin(7)
    for i in range(12):
        journal.accept(update(7, f"c{i:02}"))
    journal = FileJournal(tmp_path)
    journal.begin(7)
    journal.accept(update(5, "late"))
    assert [answer.client for answer in journal.accepted(7)] == [*(f"c{i:02}" for i in range(12)), "late"]


def test_as_many_earlier_rounds_are_kept_as_asked(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path, keep=1)
    for round in range(5):
        journal.begin(round)
        journal.accept(update(round))
    assert journal.rounds() == [3, 4]
    journal.begin(3)  # fallen back to an older checkpoint: the round after it is still known
    assert journal.rounds() == [3, 4]


def test_failures_of_the_newest_round_are_forgiven(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path, keep=1)
    for round in (0, 1):
        journal.begin(round)
        for answer in (update(round, "a"), Failure(round, ClientId("b"), "train", "lost", "it was offline"), update(round, "c")):
            journal.accept(answer)
    journal.forgive()
    assert [[answer.client for answer in journal.accepted(round)] for round in (0, 1)] == [["a", "b", "c"], ["a", "c"]]
    journal.begin(1)
    journal.accept(update(1, "b"))
    assert [place[1] for place in journal.places(1)] == ["a", "c", "b"]


def test_what_a_killed_process_left_half_written_is_not_an_answer(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path)
    journal.begin(0)
    journal.accept(update(0))
    (tmp_path / "00000000" / ".3-77.tmp").write_bytes(b"half")
    journal = FileJournal(tmp_path)
    journal.begin(0)
    assert len(list(journal.accepted(0))) == 1
    assert len(list((tmp_path / "00000000").iterdir())) == 1


def test_an_answer_needs_an_open_round(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no open round"):
        FileJournal(tmp_path).accept(update(0))


def test_an_update_is_accepted_before_it_is_held(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path)
    journal.begin(0)
    with pytest.raises(StoreError, match="accept it first"):
        journal.hold(update(0))


def test_nothing_is_written_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Not a directory; give a folder that may be written"):
        FileJournal(tmp_path / "file" / "journal").begin(0)
