"""Files by their content: whatever arrives, in whatever portions, only the announced bytes become a blob."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import FrameError, RemoteError, StoreError
from atoll.remote import protocol_pb2 as pb
from atoll.remote.chunks import Chunk, pack, unpack
from atoll.remote.contents import load, pieces
from atoll.remote.marks import Hashed, mark_of
from atoll.remote.outbox import Outbox
from atoll.remote.spool import Damaged, Moved, Spool, spelled
from atoll.remote.values import CHUNK_BYTES, LEAST_CHUNK_BYTES, Blob, Limits, Place
from atoll.types import Assignment, Update
from tests.remote.ends import NORTH, ask_for, reply, tree_of


def blob_of(data: bytes) -> Blob:
    return Blob(blake3(data).hexdigest(), len(data))


def mark(data: bytes) -> int:
    return mark_of(blake3(data))


@given(data=st.binary(min_size=1, max_size=200), cuts=st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=12))
def test_any_portions_with_restarts_between_them_make_the_blob(data: bytes, cuts: list[tuple[int, bool]]) -> None:
    folder, blob = Path(tempfile.mkdtemp()), blob_of(data)
    spool, at = Spool(folder), 0
    for size, restarted in [*cuts, (len(data), False)]:
        if restarted:
            spool.close()
            spool = Spool(folder)
        assert spool.part(blob).offset == at  # nothing that came is asked for again
        piece = data[at : at + size]
        at = spool.add(blob, at, piece, mark(data[: at + len(piece)]))
    spool.finish(spool.part(blob))
    assert spool.path(blob).read_bytes() == data
    spool.drop(blob)
    assert not list(folder.iterdir())


def test_what_is_not_the_blob_is_dropped(tmp_path: Path) -> None:
    spool, blob = Spool(tmp_path), blob_of(b"right")
    with pytest.raises(Damaged):
        spool.add(blob, 0, b"right", mark(b"wrong"))
    assert spool.add(blob, 0, b"wrong", mark(b"wrong")) == 5
    with pytest.raises(Moved):
        spool.add(blob, 3, b"x", mark(b"x"))
    with pytest.raises(RemoteError, match="more bytes"):
        spool.add(blob, 5, b"x", mark(b"x"))
    with pytest.raises(Damaged):
        spool.finish(spool.part(blob))
    assert (spool.has(blob), spool.part(blob).offset) == (False, 0)
    with pytest.raises(RemoteError, match="announced"):
        spool.part(blob._replace(size_bytes=6))


def test_a_whole_file_that_was_damaged_while_nobody_looked_is_no_blob_any_more(tmp_path: Path) -> None:
    blob = Spool(tmp_path).put([memoryview(b"right")])
    (tmp_path / blob.digest).write_bytes(b"wrong")
    spool = Spool(tmp_path)
    assert not spool.has(blob)
    with pytest.raises(Damaged):
        spool.finish(spool.part(blob))


def test_a_full_disk_is_said_and_what_came_before_stays(small: Path) -> None:
    data = bytes(3_000_000)
    spool, blob = Spool(small, Limits(free_bytes=-10_000_000)), blob_of(data)  # the check beforehand is switched off
    piece = data[: 1 << 19]
    spool.add(blob, 0, piece, mark(piece))
    with pytest.raises(StoreError, match="full"):
        spool.add(blob, len(piece), data[len(piece) :], mark(data))
    assert spool.part(blob).offset >= len(piece)
    with pytest.raises(StoreError, match="full"):
        Spool(small / "other").put([memoryview(data)])
    assert not list((small / "other").iterdir())


def test_a_frame_is_read_back_and_a_damaged_one_refused(tmp_path: Path) -> None:
    data = b"".join(pieces(ask_for(tree_of(100))))
    path = tmp_path / "frame"
    path.write_bytes(data)
    assert b"".join(pieces(load(path))) == data
    for wrong in (data[:-1], data[:90], b"", bytes(200), b"x" + data, data + b"0"):
        path.write_bytes(wrong)
        with pytest.raises(FrameError):
            load(path)
    with pytest.raises(StoreError):
        load(tmp_path / "absent")


def test_an_outbox_outlives_its_process_and_forgets_what_is_torn(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    whole = outbox.put("job", "key", reply(ask_for(tree_of(10))))
    torn = outbox.put("job", "key", reply(ask_for(tree_of(10), round=1)))
    outbox.path(torn).write_bytes(b"torn by a power cut")
    outbox.close()
    again = Outbox(tmp_path)
    assert again.letters == {("job", Place(0, NORTH, "train")): whole}
    assert isinstance(load(again.path(whole)), Update)
    again.drop(whole)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@given(data=st.binary(max_size=400), digest=st.text(max_size=5), offset=st.integers(0, 2**64 - 1))
def test_a_chunk_is_what_the_protocols_own_class_reads_and_writes(data: bytes, digest: str, offset: int) -> None:
    parcel = pb.Parcel(blob=pb.Blob(digest=digest))
    chunk = Chunk(data, offset % 2**32, parcel, offset)
    theirs = pb.Chunk(data=data, mark=chunk.mark, parcel=parcel, offset=offset)
    assert pb.Chunk.FromString(pack(chunk)) == theirs
    found = unpack(theirs.SerializeToString())
    assert (bytes(found.data), found.mark, found.parcel, found.offset) == (data, chunk.mark, parcel, offset)


@given(data=st.binary(max_size=40))
def test_no_bytes_break_the_reading_of_chunks(data: bytes) -> None:
    for each in (data, b"\x0a" + data):
        with contextlib.suppress(ValueError, DecodeError):
            assert len(unpack(each).data) <= len(each)


def test_names_of_folders_never_meet() -> None:
    names = ["a/b", "ab", "a b", "../ab", "", "ü"]
    assert len({spelled(name) for name in names}) == len(names)
    assert not any("/" in spelled(name) or "." in spelled(name) for name in names)


def test_what_was_read_is_the_file_itself_and_writing_to_it_changes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "frame"
    path.write_bytes(b"".join(pieces(ask_for({"b": torch.ones(3), "w": torch.ones(5, 7)}))))
    before, found = path.read_bytes(), load(path)
    assert isinstance(found, Assignment)
    assert found.tree["b"].data_ptr() % 64 == 0  # as fresh memory, so that a BLAS rounds as it does there
    path.unlink()
    found.tree["w"].mul_(2.0)
    assert torch.equal(found.tree["w"], torch.full((5, 7), 2.0))
    path.write_bytes(before)
    assert torch.equal(load(path).tree["w"], torch.ones(5, 7))  # type: ignore[union-attr]


def test_a_chunk_is_read_with_its_mark_after_a_restart_too(tmp_path: Path) -> None:
    data = torch.arange(CHUNK_BYTES // 2, dtype=torch.int32).numpy().tobytes() + b"tail"
    first = Spool(tmp_path)
    blob = first.put([memoryview(data[:5]), memoryview(data[5:])])
    spool = Spool(tmp_path)
    spool.finish(spool.part(blob))
    with open(spool.path(blob), "rb") as file:
        for each in (first, spool):
            for at, ends in ((0, CHUNK_BYTES), (7, CHUNK_BYTES), (CHUNK_BYTES, 2 * CHUNK_BYTES), (len(data) - 1, len(data))):
                assert each.read(blob, file.fileno(), at) == (data[at:ends], mark(data[:ends]))
            for at in (0, 5, LEAST_CHUNK_BYTES, CHUNK_BYTES):
                ends = at - at % LEAST_CHUNK_BYTES + LEAST_CHUNK_BYTES
                assert each.read(blob, file.fileno(), at, LEAST_CHUNK_BYTES) == (data[at:ends], mark(data[:ends]))
            for at in (len(data), 1 << 60):
                assert each.read(blob, file.fileno(), at) == (b"", 0)


@given(cuts=st.lists(st.integers(0, 3 * CHUNK_BYTES), max_size=4))
def test_marks_do_not_depend_on_how_bytes_come(cuts: list[int]) -> None:
    data = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"end"
    hashed, at = Hashed(), 0
    for cut in [*sorted(cuts), len(data)]:
        hashed.update(memoryview(data)[at:cut])
        at = max(at, cut)
    assert hashed.digest == blake3(data).hexdigest()
    assert [hashed.at(end) for end in (CHUNK_BYTES, 3 * CHUNK_BYTES, len(data))] == [
        mark(data[:CHUNK_BYTES]),
        mark(data[: 3 * CHUNK_BYTES]),
        mark(data),
    ]
