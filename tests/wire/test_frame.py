"""Frames: what is written is read, a size is what is written, no wrong byte passes, and no tensor is copied."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from atoll import tree
from atoll.errors import FrameError
from atoll.transforms.compress.int8 import int8
from atoll.types import Assignment, ClientId, Failure, Tree, Update
from atoll.wire import frame
from atoll.wire import table as tables
from atoll.wire.table import _DTYPES, Entry, Table, table_of
from tests.wire.trees import same, values

HERE = (3, ClientId("north"), "train")


def joined(value: Assignment | Update | Failure, base: bytes = frame.NO_BASE) -> bytes:
    return b"".join(frame.write(value, base))


def floats(numbers: Mapping[str, float]) -> bytes:
    """To compare NaN with NaN."""
    return b"".join(name.encode() + struct.pack("<d", x) for name, x in numbers.items())


@given(value=values(), base=st.just(b"") | st.binary(min_size=16, max_size=16))
def test_what_is_written_is_read_and_a_size_is_what_is_written(value: Assignment | Update | Failure, base: bytes) -> None:
    data = joined(value, base)
    assert frame.size(value, base).total == len(data)
    found = frame.read(data)
    assert found.base == base
    assert type(found.value) is type(value)
    assert found.value[:3] == value[:3]
    if isinstance(value, Failure):
        assert found.value == value
        return
    assert not isinstance(found.value, Failure)
    assert same(found.value.tree, value.tree)
    assert frame.size(value).payload == sum(x.numel() * x.element_size() for x in value.tree.values())
    if isinstance(value, Update):
        assert isinstance(found.value, Update)
        assert floats(found.value.metrics) == floats(value.metrics)
        assert struct.pack("<d", found.value.weight) == struct.pack("<d", value.weight)
    elif isinstance(found.value, Assignment):
        assert found.value.seed == value.seed


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 2**40), (3, 5), (2,) * 16], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_every_dtype_alone(dtype: torch.dtype, shape: tuple[int, ...], packed: bool) -> None:
    values: Tree = {"w": torch.ones(shape).to(dtype), "v": torch.zeros(3).to(dtype)}
    sent = Assignment(*HERE, tree.pack(values) if packed else values, 7)
    found = frame.read(joined(sent)).value
    assert isinstance(found, Assignment)
    assert same(found.tree, values)


def test_what_is_not_there_takes_no_bytes_and_what_is_there_few() -> None:
    """By hand: ten bytes in front, the fields, a table, no padding where one number is a byte, four of checksum."""
    place = "03 056e6f727468 05747261696e"
    table = "00 01 00 0177 26 03"  # plain, one; nothing shared, one byte, "w"; uint8 and one axis, of 3
    wanted: dict[frame.Size, Assignment | Update | Failure] = {
        frame.Size(3, 36): Update(*HERE, {"w": torch.zeros(3, dtype=torch.uint8)}, 8.0, {}),
        frame.Size(0, 10 + 13 + 10 + 2 + 4): Failure(*HERE, "no_data", "?"),
        frame.Size(0, 10 + 13 + 1 + 2 + 4): Assignment(*HERE, {}, 7),
    }
    for size, value in wanted.items():
        assert frame.size(value) == size
    data = joined(next(iter(wanted.values())))
    assert data[:-4].hex() == "41544c4c010116000000" + (place + "10 00" + table + "000000").replace(" ", "")
    based = joined(next(iter(wanted.values())), bytes(range(16)))
    assert len(based) == len(data) + 16
    assert based[5] == 0b101
    assert frame.read(based).base == bytes(range(16))


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
def test_a_payload_begins_at_a_multiple_of_its_widest_numbers(dtype: torch.dtype) -> None:
    for name in ("w", "ww", "www", "wwww"):
        data = joined(Assignment(*HERE, {"v": torch.zeros(3, dtype=torch.bool), name: torch.ones(2).to(dtype)}, 7))
        front = frame.read_front(data).size_bytes
        assert front % dtype.itemsize == 0
        assert front - frame.START_BYTES - int.from_bytes(data[6:10], "little") < dtype.itemsize


def test_one_dtype_comes_back_as_one_buffer() -> None:
    sent = tree.pack({"w": torch.ones(2, 2), "b": torch.zeros(2)})
    found = frame.read(joined(Assignment(*HERE, sent, 7))).value
    assert isinstance(found, Assignment)
    assert isinstance(found.tree, tree.Flat)
    assert found.tree.layout == sent.layout  # type: ignore[attr-defined]


def mixed() -> Update:
    """Gaps between tensors, a table that is packed, metrics."""
    told = {f"layers.{i}.weight": torch.arange(3, dtype=torch.uint8) for i in range(8)}
    return Update(*HERE, {**told, "scale": torch.ones(2)}, 8.0, {"loss": 0.5})


@pytest.mark.parametrize("value", [mixed(), Failure(*HERE, "no_data", "nothing"), Assignment(*HERE, {"w": torch.ones(3)}, 7)])
def test_no_wrong_byte_passes(value: Assignment | Update | Failure) -> None:
    data = joined(value)
    frame.read(data)
    for at in range(len(data)):
        cut = data[:at]
        shorter, longer = data[:at] + data[at + 1 :], data[:at] + b"\0" + data[at:]
        flipped = [data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :] for bit in range(8)]
        for wrong in (cut, shorter, longer, *flipped):
            with pytest.raises(FrameError):
                frame.read(wrong)
    for added in (b"\0", data):
        with pytest.raises(FrameError, match="run together"):
            frame.read(data + added)


def address(data: bytes | bytearray | memoryview) -> int:
    return int(np.frombuffer(data, np.uint8).ctypes.data)


@pytest.mark.parametrize("packed", [True, False])
def test_tensors_are_not_copied(packed: bool) -> None:
    values: Tree = {"w": torch.ones(50, 2), "b": torch.zeros(7)}
    sent = tree.pack(values) if packed else {**values, "n": torch.tensor([1, 2])}
    pieces = [piece for piece in frame.write(Assignment(*HERE, sent, 7)) if len(piece) >= 16][1:]
    held = [sent.buffer] if isinstance(sent, tree.Flat) else list(sent.values())
    assert [address(piece) for piece in pieces] == [x.data_ptr() for x in held]
    data = bytearray(joined(Assignment(*HERE, sent, 7)))
    found = frame.read(data).value
    assert isinstance(found, Assignment)
    for x in found.tree.values():
        assert address(data) <= x.data_ptr() < address(data) + len(data)


def test_a_layout_has_one_table() -> None:
    """What makes the size of a client's frame cost microseconds: nothing is looked at twice."""
    first = tree.pack({"w": torch.ones(2), "b": torch.zeros(1)})
    assert table_of(tree.scale(first, 2.0)) is table_of(first)
    assert table_of(dict(first)) is table_of(first)
    assert table_of(tree.pack(dict(first))) is table_of(first)
    assert table_of(tree.map(lambda x: x.half(), first)) is not table_of(first)


def test_layouts_that_come_and_go_are_told_apart() -> None:
    for length in range(200):
        found = table_of(tree.pack({"w": torch.zeros(length), "b": torch.zeros(1)}))
        assert found.numbers == length + 1


def test_it_names_the_codecs_that_encoded_it() -> None:
    sent, _ = int8().encode(None, {}, {}, Update(*HERE, {"w": torch.ones(4)}, 1.0, {}))  # type: ignore[arg-type]
    assert frame.read(joined(sent)).codecs == ("int8/1",)
    assert frame.read(joined(mixed())).codecs == ()
    entries = [Entry(name, torch.uint8, ()) for name in ("~a/b/2=q", "plain", "zstd/1=data", "b/2=s", "x=y")]
    assert Table(tuple(entries)).codecs == ("a/b/2", "zstd/1", "b/2")


def test_names_spell_what_they_share_once() -> None:
    """By hand: how much is shared, what follows, then 32 for each axis and the dtype's code, and the axes."""
    whole = {
        "ecsq/1=step": torch.tensor(1.0),
        "ecsq/1=words": torch.zeros(5, dtype=torch.int32),
        "ecsq/1=large": torch.zeros(0, dtype=torch.int32),
        "ecsq/1=model": torch.zeros(4, dtype=torch.uint8),
    }
    told = [("000b", b"ecsq/1=step", "00"), ("0705", b"words", "2905"), ("0705", b"large", "2900"), ("0705", b"model", "2604")]
    by_hand = "0004" + "".join(front + rest.hex() + kind for front, rest, kind in told)
    assert tables.write(table_of(whole)).hex() == by_hand
    assert tables.read(bytes.fromhex(by_hand)) == table_of(whole)
    halves: Tree = {"\xe9": torch.ones(()), "\xe8": torch.ones(()), "": torch.ones(()), "\xe8l": torch.ones(())}  # share a byte
    assert tables.read(tables.write(table_of(halves))) == table_of(halves)


def test_another_tree_than_the_jobs_is_refused_with_what_is_odd() -> None:
    like = {"w": torch.zeros(2), "b": torch.zeros(1)}
    frame.read(joined(Assignment(*HERE, {"w": torch.ones(2), "b": torch.ones(1)}, 7)), like)
    wrong: list[tuple[dict[str, Tensor], str]] = [
        ({"w": torch.ones(2)}, r"'b' is not there, and should be float32 \(1,\)"),
        ({"w": torch.ones(2), "b": torch.ones(1).double()}, r"'b' is float64 \(1,\), and should be float32"),
        ({"w": torch.ones(3), "b": torch.ones(1)}, r"'w' is float32 \(3,\), and should be float32 \(2,\)"),
        ({"w": torch.ones(2), "b": torch.ones(1), "c": torch.ones(1)}, "'c' is .* and should be not there"),
        ({"b": torch.ones(1), "w": torch.ones(2)}, "their order"),
    ]
    for sent, why in wrong:
        with pytest.raises(FrameError, match=why):
            frame.read(joined(Assignment(*HERE, sent, 7)), like)
    with pytest.raises(FrameError, match="announces 12 bytes of tensors; 11 are allowed"):
        frame.read(joined(Assignment(*HERE, {"w": torch.ones(3)}, 7)), most_bytes=11)


def test_what_cannot_be_read_is_not_written() -> None:
    many = {f"m{i}": 0.0 for i in range(frame.MOST_METRICS + 1)}
    wrong: list[tuple[Assignment | Update | Failure, str]] = [
        (Assignment(*HERE, {"w": torch.ones(2, dtype=torch.complex64)}, 7), "w is a tensor of torch.complex64"),
        (Assignment(*HERE, {"w": torch.ones(2, 2).to_sparse()}, 7), "make it dense"),
        (Assignment(*HERE, {"w": torch.ones(2, device="meta")}, 7), "make it dense"),
        (Assignment(*HERE, {"w": torch.ones((1,) * 17)}, 7), "17 axes"),
        (Assignment(*HERE, {"w" * 5000: torch.ones(1)}, 7), "4096 is the limit"),
        (Assignment(*HERE, {}, -1), "from 0 to"),
        (Assignment(*HERE, {}, 2**63 + 1), "from 0 to"),
        (Failure(0, ClientId("\ud800"), "train", "", ""), "half of a character"),
        (Update(*HERE, {}, 1.0, many), "metrics can't be sent"),
    ]
    for value, why in wrong:
        with pytest.raises(FrameError, match=why):
            joined(value)
    long = {f"{i}" * 4000: torch.ones(()) for i in range(10)} | {f"{i:05d}" + "w" * 4090: torch.ones(()) for i in range(4100)}
    with pytest.raises(FrameError, match="use shorter names"):
        frame.size(Assignment(*HERE, long, 7))
    with pytest.raises(FrameError, match="a base hash of 15 bytes"):
        joined(Failure(*HERE, "", ""), bytes(15))
    assert frame.size(Assignment(*HERE, {"w": torch.ones(2, device="meta")}, 7)).payload == 8, "a size needs no memory"


def test_a_long_reason_is_cut_at_a_character() -> None:
    found = frame.read(joined(Failure(*HERE, "error", "é" * 1000))).value
    assert isinstance(found, Failure)
    assert found.reason == "é" * 512
    odd = frame.read(joined(Failure(*HERE, "error", "a" + "é" * 1000))).value
    assert isinstance(odd, Failure)
    assert odd.reason == "a" + "é" * 511
