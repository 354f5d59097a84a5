"""Client memory in files: names that can do no harm, and nothing for who remembers nothing."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import StoreError
from atoll.store.memories import FileMemories, _spell
from atoll.types import ClientId

NAMES = [
    "..",
    ".",
    "",
    "/etc/passwd",
    "../../x",
    "a\x00b",
    "CON",
    "a" * 1000,
    "\ud800",
    "hamlet",
    "Hamlet",
    "hamlet ",
    "~",
    "-rf",
]


@pytest.mark.parametrize("client", NAMES, ids=ascii)
def test_no_name_leads_out_of_the_folder(tmp_path: Path, client: str) -> None:
    memories = FileMemories(tmp_path / "in" / "memory")
    memories.propose(ClientId(client), 0, client, {"w": torch.ones(1)})
    memories.commit(ClientId(client), 0, client)
    assert FileMemories(tmp_path / "in" / "memory").get(ClientId(client))["w"].item() == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["memory"]
    assert len(list((tmp_path / "in" / "memory").iterdir())) == 1


@given(a=st.text(), b=st.text())
@settings(max_examples=200, deadline=None)
def test_two_names_are_two_files_even_where_case_is_ignored(a: str, b: str) -> None:
    assert (a == b) == (_spell(a).lower() == _spell(b).lower())
    assert len(_spell(a)) < 100


def test_who_remembers_nothing_has_no_file(tmp_path: Path) -> None:
    memories = FileMemories(tmp_path / "memory")
    for round in range(3):
        memories.propose(ClientId("north"), round, "train", {})
        memories.commit(ClientId("north"), round, "train")
    assert not (tmp_path / "memory").exists()


def test_a_refused_proposal_is_forgotten(tmp_path: Path) -> None:
    memories = FileMemories(tmp_path)
    memories.propose(ClientId("north"), 0, "train", {"w": torch.ones(1)})
    memories.discard(ClientId("north"), 0, "train")
    memories.discard(ClientId("north"), 0, "train")
    memories.commit(ClientId("north"), 0, "train")
    assert memories.get(ClientId("north")) == {}


def test_two_kinds_of_work_propose_side_by_side(tmp_path: Path) -> None:
    memories = FileMemories(tmp_path)
    memories.propose(ClientId("north"), 0, "a/b", {"w": torch.tensor(1.0)})
    memories.propose(ClientId("north"), 0, "a_b", {"w": torch.tensor(2.0)})
    memories.commit(ClientId("north"), 0, "a/b")
    assert memories.get(ClientId("north"))["w"].item() == 1.0
    memories.commit(ClientId("north"), 0, "a_b")
    assert memories.get(ClientId("north"))["w"].item() == 2.0


def test_a_folder_under_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="give a folder that may be written"):
        FileMemories(tmp_path / "file" / "memory").propose(ClientId("north"), 0, "train", {"w": torch.ones(1)})
