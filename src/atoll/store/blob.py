"""One safetensors file, written whole or not at all, and read back bit for bit.

The format is that of the safetensors package (https://github.com/huggingface/safetensors), and its files and ours
are read by both. We write it ourselves because a checkpoint must be flushed before it is renamed, a full disk must
stay an OSError with its errno, and a tensor should be read straight into memory of its own: views of one mapped
file start at odd addresses, where a BLAS may round otherwise than it did before the kill.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atoll.errors import StoreError
from atoll.store.files import Corrupt as Corrupt
from atoll.store.places import Place, Readable, place
from atoll.store.sealed import refuse_sealed

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_CHECKSUM = "crc32"


def write(path: Path | Place, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, durable: bool = False) -> int:
    """Write the tensors to `path`, whole or not at all; return the size in bytes.

    After `durable` the file outlives a power cut, not only the process, and carries a checksum. Raises StoreError
    where the disk is full or the folder can't be written.
    """
    # The largest elements first keep every tensor aligned to its own element size.
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())
    parts = {name: _bytes(name, tensors[name]) for name in order}
    meta = dict(metadata)
    if durable:
        meta[_CHECKSUM] = f"{_checksum(metadata, parts.values()):08x}"
    header: dict[str, Any] = {"__metadata__": meta}
    size = 0
    for name in order:
        end = size + len(parts[name])
        x = tensors[name]
        header[name] = {"dtype": _NAMES[x.dtype], "shape": list(x.shape), "data_offsets": [size, end]}
        size = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    total = 8 + len(head) + size
    with place(path).writing(total, durable=durable) as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for part in parts.values():
            file.write(part)
    return total


def read(path: Path | Place) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file. Raises Corrupt where it is torn, StoreError where it can't be read."""
    try:
        with place(path).reading() as (file, size_bytes):
            header, start = _header(file, size_bytes, path)
            meta = header.pop("__metadata__", {})
            found: dict[str, Tensor] = {}
            reached = start
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                begin, end = entry["data_offsets"]
                x = torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]])
                if end - begin != x.numel() * x.element_size() or start + begin != reached:
                    raise Corrupt(f"{path} is damaged: the tensor {name!r} does not fit its place")
                if end > begin:
                    _fill(file, _memory(x), path)
                reached = start + end
                found[name] = x
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise Corrupt(f"{path} is damaged: its header makes no sense ({error})") from error
    _verify(path, found, meta)
    return found, meta


def metadata(path: Path | Place) -> dict[str, str]:
    """The metadata of a file alone, without its tensors."""
    try:
        with place(path).reading() as (file, size_bytes):
            header, _ = _header(file, size_bytes, path)
            return dict(header.get("__metadata__", {}))
    except (TypeError, ValueError, AttributeError) as error:
        raise Corrupt(f"{path} is damaged: its header makes no sense ({error})") from error


def check(name: str, x: Tensor) -> None:
    """Raise StoreError for a tensor that no file of ours holds."""
    if x.dtype not in _NAMES or x.layout != torch.strided:
        raise StoreError(f"{name} is a tensor of {x.dtype}, {x.layout}, which can't be kept; make it dense and of a plain dtype")


def _bytes(name: str, x: Tensor) -> memoryview:
    check(name, x)
    plain = x.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return _memory(plain) if plain.numel() else memoryview(b"")


def _memory(x: Tensor) -> memoryview:
    return x.reshape(-1).view(torch.uint8).numpy().data


def _fill(file: Readable, room: memoryview, path: Path | Place) -> None:
    while len(room):
        got = file.readinto(room)
        if not got:
            raise Corrupt(f"{path} is torn: it ends before its last tensor")
        room = room[got:]


def _header(file: Readable, size: int, path: Path | Place) -> tuple[dict[str, Any], int]:
    start = file.read(8)
    refuse_sealed(start, str(path))
    length = int.from_bytes(start, "little")
    if size < 8 or 8 + length > size:
        raise Corrupt(f"{path} is torn: it is {size} bytes long, too short for its header")
    room = bytearray(length)
    _fill(file, memoryview(room), path)
    header = json.loads(room)
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    if size != 8 + length + max(ends, default=0):
        raise Corrupt(f"{path} is torn: it is {size} bytes long, and should be {8 + length + max(ends, default=0)}")
    return header, 8 + length


def _checksum(metadata: Mapping[str, str], parts: Any) -> int:
    total = zlib.crc32(json.dumps(sorted(metadata.items())).encode())
    for part in parts:
        total = zlib.crc32(part, total)
    return total


def _verify(path: Path | Place, tensors: Mapping[str, Tensor], meta: dict[str, str]) -> None:
    told = meta.pop(_CHECKSUM, None)
    if told is not None and told != f"{_checksum(meta, (_bytes(name, x) for name, x in tensors.items())):08x}":
        raise Corrupt(f"{path} is damaged: its contents are not those that were written")
