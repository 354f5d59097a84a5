"""What is sealed is read back bit for bit by who has the key, and by nobody after anything of it has been changed."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from atoll.errors import MissingExtra, StoreError, VersionError
from atoll.store import checkpoints, state
from atoll.store.blob import Corrupt
from atoll.store.journal import FileJournal
from atoll.store.keys import Keys, WrongKey
from atoll.store.memories import FileMemories
from atoll.store.places import Folder, LocalFile, Place
from atoll.store.runs import Store
from atoll.store.sealed import CHUNK_BYTES, HEAD_BYTES, TAG_BYTES, Seal, Sealed, SealedBlobs, sealed_bytes
from atoll.testing.store import check_journal, check_memories, check_store, same_bits, trees
from atoll.types import ClientId, Update

pytest.importorskip("cryptography", reason="sealing needs it: pip install 'atoll[encryption]'")

OLD, NEW = bytes(range(32)), bytes(range(32, 64))
KEYS = Keys(OLD)
ONE_SEALED = CHUNK_BYTES + TAG_BYTES


def write(place: Place, data: bytes, piece: int = 1 << 30) -> None:
    with place.writing(len(data)) as file:
        for start in range(0, len(data), piece):
            file.write(data[start : start + piece])


def read(place: Place) -> bytes:
    with place.reading() as (file, size_bytes):
        found = file.read(size_bytes + 1)
    assert len(found) == size_bytes
    return found


def sealed(file: Path, name: str = "run/blob", keys: Keys = KEYS) -> Sealed:
    return Sealed(LocalFile(file), keys, name)


def interrupted(place: Place) -> None:
    with place.writing(9) as writer:
        writer.write(bytes(2 * CHUNK_BYTES))
        raise KeyboardInterrupt


SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 77]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("piece", [1 << 30, 100_003])
def test_every_size_comes_back_and_has_the_size_that_is_foretold(tmp_path: Path, size: int, piece: int) -> None:
    data = os.urandom(size)
    write(sealed(tmp_path / "blob"), data, piece)
    assert read(sealed(tmp_path / "blob")) == data
    assert (tmp_path / "blob").stat().st_size == sealed_bytes(size)
    if size > 16:
        assert data[:16] not in (tmp_path / "blob").read_bytes()


@settings(max_examples=30, deadline=None)
@given(pieces=st.lists(st.integers(0, 2 * CHUNK_BYTES), max_size=5), told=st.sampled_from([0, 1000, 1 << 40]))
@example(pieces=[CHUNK_BYTES, 0, CHUNK_BYTES], told=0)
@example(pieces=[600, 600, CHUNK_BYTES], told=1000)
@example(pieces=[1, 2 * CHUNK_BYTES, CHUNK_BYTES - 1], told=1 << 40)
def test_how_it_is_cut_into_writes_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[int], told: int
) -> None:
    file = tmp_path_factory.mktemp("pieces") / "blob"
    data = [bytes([number]) * size for number, size in enumerate(pieces)]
    with sealed(file).writing(min(told, sum(pieces))) as writer:  # nor a size that is told too small
        for each in data:
            writer.write(each)
    assert read(sealed(file)) == b"".join(data)


def test_it_is_what_the_standard_ciphers_make_of_it(tmp_path: Path) -> None:
    """Opened here by the description alone, with the primitives of the package: what another program would do."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    data = os.urandom(CHUNK_BYTES + 5)
    write(sealed(tmp_path / "blob", "run/a"), data)
    found = (tmp_path / "blob").read_bytes()
    assert found[:16] == b"atoll sealed 1\n\0"
    head, body = found[:56], found[56:]
    cipher = AESGCM(HKDF(SHA256(), 32, salt=head[24:], info=b"atoll store blob 1").derive(OLD))
    first = cipher.decrypt(bytes(12), body[: CHUNK_BYTES + 16], head + b"run/a")
    second = cipher.decrypt(bytes(10) + b"\x01\x01", body[CHUNK_BYTES + 16 :], head + b"run/a")
    assert first + second == data


def test_the_same_bytes_are_never_sealed_alike(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(sealed(tmp_path / name, "same"), bytes(1000))
    a, b = (tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()
    assert a[:24] == b[:24]
    assert all(a[i : i + 16] != b[i : i + 16] for i in range(24, len(a) - 16))


@settings(max_examples=200, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_flipped_bit_is_noticed(tmp_path_factory: pytest.TempPathFactory, at: float, bit: int) -> None:
    file = tmp_path_factory.mktemp("flip") / "blob"
    write(sealed(file), bytes(40))
    data = bytearray(file.read_bytes())
    data[int(at * len(data))] ^= 1 << bit
    file.write_bytes(data)
    with pytest.raises((StoreError, VersionError)):
        read(sealed(file))


def test_every_flipped_bit_of_the_head_is_noticed(tmp_path: Path) -> None:
    write(sealed(tmp_path / "blob"), b"")
    data = (tmp_path / "blob").read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "blob").write_bytes(flipped)
        with pytest.raises((StoreError, VersionError)):
            read(sealed(tmp_path / "blob"))


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    write(sealed(tmp_path / "blob"), bytes(30))
    data = (tmp_path / "blob").read_bytes()
    for length in range(len(data)):
        (tmp_path / "blob").write_bytes(data[:length])
        with pytest.raises(Corrupt):
            read(sealed(tmp_path / "blob"))


def chunks(file: Path) -> tuple[bytes, list[bytes]]:
    data = file.read_bytes()
    body = data[HEAD_BYTES:]
    return data[:HEAD_BYTES], [body[at : at + ONE_SEALED] for at in range(0, len(body), ONE_SEALED)]


@pytest.mark.parametrize("order", [[0], [0, 1], [0, 1, 2, 2], [1, 0, 2], [2], [0, 0, 2], [1, 2], [0, 2, 1], [2, 1, 0]], ids=str)
@pytest.mark.parametrize("tail", [CHUNK_BYTES, 9], ids=["whole", "short"])
def test_chunks_dropped_repeated_or_reordered_are_noticed(tmp_path: Path, order: list[int], tail: int) -> None:
    write(sealed(tmp_path / "blob"), os.urandom(2 * CHUNK_BYTES + tail))
    head, parts = chunks(tmp_path / "blob")
    assert len(parts) == 3
    (tmp_path / "blob").write_bytes(head + b"".join(parts[each] for each in order))
    with pytest.raises(Corrupt):
        read(sealed(tmp_path / "blob"))


def test_a_chunk_of_another_blob_under_the_same_name_and_key_is_noticed(tmp_path: Path) -> None:
    for name in ("before", "after"):
        write(sealed(tmp_path / name), os.urandom(2 * CHUNK_BYTES))
    head, parts = chunks(tmp_path / "after")
    (tmp_path / "after").write_bytes(head + parts[0] + chunks(tmp_path / "before")[1][1])
    with pytest.raises(Corrupt, match="its chunk 2 of 2"):
        read(sealed(tmp_path / "after"))


def test_two_files_exchanged_are_noticed(tmp_path: Path) -> None:
    write(sealed(tmp_path / "a", "run/a"), b"of a")
    write(sealed(tmp_path / "b", "run/b"), b"of b")
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    with pytest.raises(Corrupt, match="not what was sealed under this name"):
        read(sealed(tmp_path / "a", "run/a"))


def test_another_key_is_told_by_its_id_and_never_shown(tmp_path: Path) -> None:
    write(sealed(tmp_path / "blob"), b"x")
    with pytest.raises(WrongKey, match=r"is sealed with the key [0-9a-f]{16}, and the keys given are [0-9a-f]{16};") as told:
        read(sealed(tmp_path / "blob", keys=Keys(NEW)))
    assert OLD.hex() not in str(told.value)
    assert NEW.hex() not in repr(Keys(NEW)) + str(told.value)


def test_a_key_is_replaced_without_anything_sealed_anew(tmp_path: Path) -> None:
    write(sealed(tmp_path / "old"), b"old")
    both = Keys(OLD, NEW)
    assert read(sealed(tmp_path / "old", keys=both)) == b"old"
    write(sealed(tmp_path / "new", keys=both), b"new")
    assert read(sealed(tmp_path / "new", keys=Keys(NEW))) == b"new"
    with pytest.raises(WrongKey):
        read(sealed(tmp_path / "new", keys=KEYS))


def test_without_a_key_a_sealed_file_says_so_and_with_one_a_plain_file_does(tmp_path: Path) -> None:
    state.save({"w": torch.ones(2)}, sealed(tmp_path / "sealed"))
    with pytest.raises(WrongKey, match="is sealed, and no key is given: give it in ATOLL_STORE_KEY"):
        state.load(None, tmp_path / "sealed")
    state.save({"w": torch.ones(2)}, tmp_path / "plain")
    with pytest.raises(Corrupt, match="is not sealed, and a key is given: unset ATOLL_STORE_KEY"):
        state.load(None, sealed(tmp_path / "plain"))


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    write(sealed(tmp_path / "blob"), b"x")
    (tmp_path / "blob").write_bytes((tmp_path / "blob").read_bytes().replace(b"sealed 1", b"sealed 2"))
    with pytest.raises(VersionError, match="newer Atoll"):
        read(sealed(tmp_path / "blob"))


def test_states_come_back_bit_for_bit(tmp_path: Path) -> None:
    value = [*trees(), {"large": torch.randn(300_000)}]
    state.save(value, sealed(tmp_path / "state"), durable=True, extra={"place": 7})
    assert same_bits(state.load(None, sealed(tmp_path / "state")), value)
    assert state.read_extra(sealed(tmp_path / "state")) == {"place": 7}


def test_memory_is_bounded_by_chunks_whatever_the_size(tmp_path: Path) -> None:
    piece = bytes(1 << 20)
    tracemalloc.start()
    try:
        with sealed(tmp_path / "blob").writing(32 << 20) as writer:
            for _ in range(32):
                writer.write(piece)
        del writer
        room = memoryview(bytearray(1000))
        total = 0
        with sealed(tmp_path / "blob").reading() as (reader, size_bytes):
            while got := reader.readinto(room):
                total += got
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == size_bytes == 32 << 20
    assert peak < 3 * CHUNK_BYTES


def test_what_fails_in_the_middle_leaves_what_was_there(tmp_path: Path) -> None:
    write(sealed(tmp_path / "blob"), b"before")
    with pytest.raises(KeyboardInterrupt):
        interrupted(sealed(tmp_path / "blob"))
    assert read(sealed(tmp_path / "blob")) == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["blob"]


def test_without_cryptography_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(MissingExtra, match=r"atoll\[encryption\]"):
        write(sealed(tmp_path / "blob"), b"x")


def test_the_laws_of_a_journal_hold(tmp_path: Path) -> None:
    check_journal(lambda: FileJournal(tmp_path / "journal", lay=Seal(KEYS, "run/journal")))


def test_the_laws_of_memories_hold(tmp_path: Path) -> None:
    check_memories(lambda: FileMemories(tmp_path / "memory", lay=Seal(KEYS, "run/memory")))


def test_the_laws_of_a_store_hold(tmp_path: Path) -> None:
    check_store(lambda: Store(tmp_path / "runs", keys=KEYS))


def update(client: str, value: float) -> Update:
    return Update(0, ClientId(client), "train", {"w": torch.full((4,), value)}, 8.0, {})


def test_answers_of_a_journal_exchanged_are_noticed(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path, lay=Seal(KEYS, "run/journal"))
    journal.begin(0)
    journal.accept(update("north", 1.0))
    shutil.copy(tmp_path / "00000000" / "00000000.safetensors", tmp_path / "00000000" / "00000001.safetensors")
    with pytest.raises(Corrupt):
        list(journal.accepted(0))
    with pytest.raises(Corrupt):
        list(journal.places(0))


def test_memories_of_two_clients_or_two_updates_exchanged_are_noticed(tmp_path: Path) -> None:
    memories = FileMemories(tmp_path, lay=Seal(KEYS, "run/memory"))
    for client in ("north", "south"):
        memories.propose(ClientId(client), 0, "train", {"w": torch.ones(1)})
        memories.commit(ClientId(client), 0, "train")
    north, south = sorted(tmp_path.iterdir())
    shutil.copy(north / "committed", south / "committed")
    assert memories.get(ClientId("north"))["w"].item() == 1.0
    with pytest.raises(Corrupt):
        memories.get(ClientId("south"))
    memories.propose(ClientId("north"), 1, "train", {"w": torch.zeros(1)})
    (pending,) = north.glob("1.*")
    pending.rename(pending.with_name("2" + pending.name[1:]))
    with pytest.raises(Corrupt, match="proposed with another update"):
        memories.commit(ClientId("north"), 2, "train")


def test_a_run_falls_back_past_a_checkpoint_that_was_changed_but_not_past_a_key(tmp_path: Path) -> None:
    blobs = SealedBlobs(Folder(tmp_path), KEYS, "run")
    for round in (1, 2):
        checkpoints.save(blobs, round, {"w": torch.full((3,), float(round))}, {})
    newest = tmp_path / "checkpoints" / "00000002.safetensors"
    data = newest.read_bytes()
    newest.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    found = checkpoints.latest(blobs, None)
    assert found is not None
    assert (found.round, len(found.passed_over)) == (1, 1)
    with pytest.raises(WrongKey):
        checkpoints.latest(SealedBlobs(Folder(tmp_path), Keys(NEW), "run"), None)
    with pytest.raises(StoreError, match=r"no checkpoint in .* is whole"):
        checkpoints.latest(SealedBlobs(Folder(tmp_path), KEYS, "another-run"), None)


def test_nothing_that_a_run_keeps_is_in_the_open(tmp_path: Path) -> None:
    secret = b"\x11\x22\x33\x44" * 8
    tree = {"w": torch.frombuffer(bytearray(secret), dtype=torch.uint8)}
    with Store(tmp_path, keys=KEYS) as store, store.create("a", {}, seed=0, rounds=9) as run:
        run.journal.begin(0)
        run.journal.accept(Update(0, ClientId("north"), "train", tree, 1.0, {}))
        for round in (0, 1):
            run.memories.propose(ClientId("north"), round, "train", tree)
            run.memories.commit(ClientId("north"), 0, "train")
        run.checkpoint(1, tree)
        files = [path for path in run.folder.rglob("*") if path.is_file() and path.name != "lock"]
        assert len(files) == 4
        assert not [path for path in files if secret in path.read_bytes() or b"north" in path.read_bytes()]
