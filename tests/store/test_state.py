"""A state comes back to the bit, or the file says what is wrong with it."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from atoll.errors import StoreError, VersionError
from atoll.store import blob, state
from atoll.testing.store import same_bits, trees
from atoll.tree import Flat, pack
from atoll.types import Assignment, ClientId


class Adam(NamedTuple):
    mean: Mapping[str, torch.Tensor]
    step: int
    beta: float = 0.9


class Federation(NamedTuple):
    params: Any
    opt: Any
    extra: Any = None


def again(value: Any, folder: Path, like: Any = None) -> Any:
    state.save(value, folder / "state")
    return state.load(like, folder / "state")


@pytest.mark.parametrize("number", range(len(trees())))
def test_trees_keep_their_bits(tmp_path: Path, number: int) -> None:
    assert same_bits(again(trees()[number], tmp_path), trees()[number])


@pytest.mark.parametrize("dtype", sorted(blob._NAMES, key=str), ids=str)
def test_every_dtype_keeps_its_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    size = torch.empty((), dtype=dtype).element_size()
    values = torch.arange(256, dtype=torch.uint8).repeat(size)
    x = (values % 2).bool() if dtype == torch.bool else values.view(dtype)
    for shape in (x, x[:1].reshape(()), x[:0].reshape(0, 3), x.reshape(2, -1).t()):
        assert same_bits(again({"x": shape}, tmp_path)["x"], shape)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=9)
nests = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.builds(Adam, st.just({"": torch.ones(1)}), st.integers(), st.floats(allow_nan=False))
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(value=nests)
def test_any_nest_comes_back(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    folder = tmp_path_factory.mktemp("nest")
    assert same_bits(again(value, folder), value)
    assert same_bits(again(value, folder, like=value), value)


@given(bits=st.integers(0, 2**64 - 1))
@settings(max_examples=200, deadline=None)
def test_every_float_keeps_its_64_bits(bits: int) -> None:
    packed = bits.to_bytes(8, "big")
    assert struct.pack(">d", state._read(state._spell(struct.unpack(">d", packed)[0]))) == packed


def test_a_tree_that_is_met_twice_is_written_once_and_is_one_object_again(tmp_path: Path) -> None:
    tree, flat = {"w": torch.randn(1000)}, pack({"w": torch.randn(1000), "b": torch.ones(3)})
    flying = tuple(Assignment(0, ClientId(str(i)), "train", (tree, flat)[i % 2], i) for i in range(50))
    value = Federation(flat, Adam(tree, 3), {"in_flight": flying})
    state.save(value, tmp_path / "state")
    assert (tmp_path / "state").stat().st_size < 2 * 4000 + 16_000
    found = state.load(Federation(flat, Adam(tree, 0), {"in_flight": ()}), tmp_path / "state")
    assert same_bits(found, value)
    assert isinstance(found.params, Flat)
    assert found.extra["in_flight"][1].tree is found.params
    assert found.extra["in_flight"][2].tree is found.extra["in_flight"][0].tree is found.opt.mean


def test_tensors_that_share_memory_share_it_again(tmp_path: Path) -> None:
    w = torch.arange(6.0)
    found = again({"embed": w, "head": w, "part": w[2:]}, tmp_path)
    assert found["embed"] is found["head"]
    assert same_bits(found, {"embed": w, "head": w, "part": w[2:]})


def test_a_mapping_of_any_kind_is_a_tree(tmp_path: Path) -> None:
    assert same_bits(again(MappingProxyType({"w": torch.ones(1)}), tmp_path), {"w": torch.ones(1)})


def test_what_grew_where_the_pattern_has_nothing_is_accepted(tmp_path: Path) -> None:
    grown = Federation({"w": torch.ones(2)}, Adam({"w": torch.ones(2)}, 1), {"north": [1.0]})
    assert same_bits(again(grown, tmp_path, like=Federation({"w": torch.zeros(2)}, None, {})), grown)


@pytest.mark.parametrize(
    ("like", "told"),
    [
        ({"w": torch.zeros(3), "n": 0}, r"state.w is \(2,\) torch.float32 in the file, and \(3,\) torch.float32 here"),
        ({"w": torch.zeros(2, dtype=torch.bfloat16), "n": 0}, r"\(2,\) torch.bfloat16 here"),
        ({"w": torch.zeros(2), "m": 0}, "only one side has m, n"),
        ({"w": torch.zeros(2), "n": "0"}, "state.n is an int in the file, and a str here"),
        ({"w": 1.0, "n": 0}, "state.w is a tensor in the file, and a float here"),
        ([1], "state is a mapping in the file, and a list here"),
        (Adam({}, 0), "state is a mapping in the file, and an Adam here"),
    ],
)
def test_another_structure_is_told(tmp_path: Path, like: Any, told: str) -> None:
    state.save({"w": torch.ones(2), "n": 1}, tmp_path / "state")
    with pytest.raises(StoreError, match=told):
        state.load(like, tmp_path / "state")


def test_another_named_tuple_is_told(tmp_path: Path) -> None:
    state.save(Adam({"w": torch.ones(1)}, 1), tmp_path / "state")
    with pytest.raises(StoreError, match="state is an Adam in the file, and a Federation here"):
        state.load(Federation({}, None), tmp_path / "state")


def test_what_a_state_can_not_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"state\.opt\.generator is a Generator, which can't be kept"):
        state.save(Federation({}, {"generator": torch.Generator()}), tmp_path / "state")
    with pytest.raises(StoreError, match="make it dense"):
        state.save({"w": torch.eye(2).to_sparse()}, tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


def test_a_named_tuple_of_a_module_that_is_not_loaded_is_not_imported(tmp_path: Path) -> None:
    stranger = type("Stranger", (Adam,), {"__module__": "antigravity"})
    state.save(stranger({"w": torch.ones(1)}, 1), tmp_path / "state")
    with pytest.raises(StoreError, match="'antigravity', which is not there"):
        state.load(None, tmp_path / "state")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    text = json.dumps({"format": 99, "state": {"of": "tomorrow"}, "extra": {}})
    save_file({"w": torch.ones(1)}, tmp_path / "state", {"atoll": text})
    with pytest.raises(VersionError, match="newer Atoll"):
        state.load(None, tmp_path / "state")


def test_a_file_of_someone_else_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "state")
    with pytest.raises(StoreError, match="not a state that Atoll wrote"):
        state.load(None, tmp_path / "state")


def test_the_safetensors_package_reads_our_files_and_we_read_its(tmp_path: Path) -> None:
    for number, tree in enumerate(trees()):
        named = {f"x{name.strip('_')}": x for name, x in tree.items()}
        blob.write(tmp_path / f"{number}", named, {"a": "b"})
        theirs = load_file(tmp_path / f"{number}")
        assert all(same_bits(theirs[name], x) for name, x in named.items())
        save_file({name: x.clone().contiguous() for name, x in named.items()}, tmp_path / "theirs", {"c": "d"})
        found, metadata = blob.read(tmp_path / "theirs")
        assert metadata == {"c": "d"}
        assert all(same_bits(found[name], x) for name, x in named.items())


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    state.save({"w": torch.ones(4), "b": 1.5}, tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    for length in range(len(data)):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(blob.Corrupt):
            state.load(None, tmp_path / "cut")


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_flipped_bit_of_a_checkpoint_is_noticed(tmp_path_factory: pytest.TempPathFactory, place: float, bit: int) -> None:
    folder = tmp_path_factory.mktemp("flip")
    value = {"w": torch.arange(40.0), "lr": 0.1}
    state.save(value, folder / "whole", durable=True)
    data = bytearray((folder / "whole").read_bytes())
    data[math.floor(place * len(data))] ^= 1 << bit
    (folder / "flipped").write_bytes(data)
    try:
        found = state.load(None, folder / "flipped")
    except (StoreError, VersionError):
        return
    assert same_bits(found, value), "a flipped bit changed the state unnoticed"


def test_extra_is_read_without_tensors(tmp_path: Path) -> None:
    state.save({"w": torch.ones(4)}, tmp_path / "state", extra={"place": 7})
    assert state.read_extra(tmp_path / "state") == {"place": 7}


def test_a_missing_file_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        state.load(None, tmp_path / "nowhere")
