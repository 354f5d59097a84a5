"""models/header.py reads safetensors headers as the safetensors package writes them."""

import json

import pytest
import torch
from safetensors.torch import save_file

from atoll.errors import DataError
from atoll.models.header import INDEX, Stored, header


def test_one_file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(
        {"w": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.zeros(()), "n": torch.zeros(0, 4)},
        path,
        metadata={"format": "pt"},
    )
    assert header(path) == {"w": Stored((2, 3), "BF16"), "b": Stored((), "F32"), "n": Stored((0, 4), "F32")}
    assert header(tmp_path) == header(path)


def test_sharded_index_names_the_files(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "model-2.safetensors")
    save_file({"stray": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    assert {name: stored.shape for name, stored in header(tmp_path).items()} == {"a": (1,), "b": (2,)}


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 8 + b"{}", b"\x02\0\0\0\0\0\0\0[1"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not a safetensors file"):
        header(path)


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match=r"holds no \*\.safetensors"):
        header(tmp_path)
    with pytest.raises(DataError, match="No such file"):
        header(tmp_path / "absent.safetensors")
