"""Names, shapes and dtypes in safetensors files, from their headers alone: no torch, and no weights are read.

A file is eight bytes of header length (little-endian), the header as JSON, then the tensors
(https://huggingface.co/docs/safetensors). A sharded model has an index that names its files.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import NamedTuple

from atoll.errors import DataError

_LIMIT_BYTES = 100_000_000  # the format's own limit; beyond it the length is not a length
INDEX = "model.safetensors.index.json"


class Stored(NamedTuple):
    """One tensor of a file."""

    shape: tuple[int, ...]
    dtype: str  # as the format spells it: "F32", "BF16", "I64", ...


def header(path: Path | str) -> dict[str, Stored]:
    """The tensors of one safetensors file, or of all the files of a model's folder.

    Raises:
        DataError: no such file, no safetensors in the folder, or no safetensors header.
    """
    path = Path(path)
    if not path.is_dir():
        return _file(path)
    index = path / INDEX
    files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())) if index.exists() else []
    found = [path / name for name in files] or sorted(path.glob("*.safetensors"))
    if not found:
        raise DataError(f"{path} holds no *.safetensors file: save the model with save_pretrained first.")
    return {name: stored for file in found for name, stored in _file(file).items()}


def _file(path: Path) -> dict[str, Stored]:
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _LIMIT_BYTES + 1
            text = file.read(size) if size <= _LIMIT_BYTES else b""
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}.") from error
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is not a safetensors file: it does not begin with a JSON header.") from error
    entries.pop("__metadata__", None)
    return {name: Stored(tuple(entry["shape"]), entry["dtype"]) for name, entry in entries.items()}
