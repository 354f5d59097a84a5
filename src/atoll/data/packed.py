"""A federated data set in one file of flat columns: written once, then mapped by whoever reads it (`atoll.data.mapped`).

The file is of the safetensors format (https://huggingface.co/docs/safetensors): one tensor `data.NAME` a column, in which
each split of each client is a span of rows and the server's held-out examples are the last; `clients.*` say which.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from atoll.data.examples import Tensors
from atoll.data.spans import flat
from atoll.data.text import Texts
from atoll.errors import DataError
from atoll.types import Batch, Dataset, Examples

FORMAT = 1  # of what lies in the file; raised when an older Atoll could not read it
KEY = "atoll"  # of the header's metadata: one JSON object, since values there are strings
DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_AT_ONCE_BYTES = 1 << 24


def pack(dataset: Dataset, path: str | Path) -> Path:
    """Write a data set of tensors to one file, whole or not at all; `atoll.data.mapped.mapped` opens it.

    Clients keep their order and examples theirs, so that a federation gives the same bits with either. About 16 MB are in
    memory at once, whatever the size. Every client gets the same splits; one that it lacked has no examples.

    Raises:
        DataError: there are no examples, they are texts, their columns differ, or the file cannot be written.

    >>> from atoll.types import ClientId
    >>> file = Path(tempfile.mkdtemp(), "toy.safetensors")
    >>> pack(Dataset("toy", {ClientId("a"): {"train": Tensors({"y": torch.arange(3)})}}, None), file).stat().st_size > 24
    True
    """
    path = Path(path)
    splits = _splits(dataset)
    clients, test = list(_held(dataset, splits)), [] if dataset.test is None else [dataset.test]
    text, ends, hashes, order = flat(dataset.clients)
    bounds = torch.tensor([0, *(len(part) for part in clients)], dtype=torch.int64).cumsum(0)
    listed = {"clients.names": text, "clients.ends": ends, "clients.hashes": hashes, "clients.order": order}
    listed["clients.bounds"] = bounds
    rows = int(bounds[-1]) + sum(len(part) for part in test)
    layout = {f"data.{name}": (x.dtype, (rows, *x.shape[1:])) for name, x in _example(dataset.name, clients + test).items()}
    layout |= {name: (x.dtype, tuple(x.shape)) for name, x in listed.items()}
    told = {"format": FORMAT, "name": dataset.name, "splits": splits, "held_out": bool(test), "about": dataset.about}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            try:
                _write(cast(BinaryIO, file), _entries(layout), told, listed, clients, test)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise DataError(f"{path} could not be written: {error}. Name a file in a folder of yours that has room.") from error
    return path


def _splits(dataset: Dataset) -> list[str]:
    return list(dict.fromkeys(split for splits in dataset.clients.values() for split in splits))


def _held(dataset: Dataset, names: Sequence[str]) -> Iterator[Examples]:
    """Every client's splits in turn."""
    none = Tensors({"": torch.zeros(0)})
    for splits in dataset.clients.values():
        yield from (splits.get(name, none) for name in names)


def _example(name: str, parts: list[Examples]) -> Batch:
    if any(isinstance(part, Texts) for part in parts):
        raise DataError(
            f"{name} holds texts, and a file of columns holds tensors; give a job file, whose task says how to tokenise."
        )
    first = next((part for part in parts if len(part)), None)
    if first is None:
        raise DataError(f"{name} has no examples, so that there is nothing to write.")
    example = first.take(torch.arange(1))
    for column, x in example.items():
        if x.dtype not in DTYPES:
            raise DataError(f"the column {column!r} of {name} is {x.dtype}, which a safetensors file can't hold; convert it.")
    return example


def _entries(layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, Any]:
    """The header's entry of each tensor; the widest numbers come first, so that each starts at a multiple of its own size."""
    entries, start = {}, 0
    for name, (dtype, shape) in sorted(layout.items(), key=lambda item: -item[1][0].itemsize):
        stop = start + dtype.itemsize * torch.Size(shape).numel()
        entries[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    return entries


def _write(
    file: BinaryIO,
    entries: Mapping[str, Any],
    told: Mapping[str, Any],
    listed: Mapping[str, Tensor],
    clients: Sequence[Examples],
    test: Sequence[Examples],
) -> None:
    """The header twice: once for its length, and again when the digest and the largest numbers are known."""
    blank = _header(entries, {**told, "largest": dict.fromkeys(entries, 10**15), "sha256": "0" * 64})
    at = {name: len(blank) + entry["data_offsets"][0] for name, entry in entries.items()}
    file.truncate(len(blank) + max(entry["data_offsets"][1] for entry in entries.values()))
    digests = {name: hashlib.sha256() for name in entries}

    def put(name: str, x: Tensor) -> None:
        if x.numel():
            content = x.contiguous().view(torch.uint8).numpy().data
            file.seek(at[name])
            file.write(content)
            digests[name].update(content)
            at[name] += x.nbytes

    for name, x in listed.items():
        put(name, x)
    largest: dict[str, tuple[int, int]] = {}  # of each column of whole numbers that clients hold, and its row
    row = 0
    for batch in _joined(clients, entries):
        for name, x in batch.items():
            put(f"data.{name}", x)
            if not x.is_floating_point() and x.numel():
                most = (x if x.dim() == 1 else x.flatten(1).amax(1)).max(0)
                largest[name] = max(largest.get(name, (int(most.values), row)), (int(most.values), row + int(most.indices)))
        row += len(x)
    for batch in _joined(test, entries):
        for name, x in batch.items():
            put(f"data.{name}", x)
    digest = hashlib.sha256(json.dumps([entries, told, [one.hexdigest() for one in digests.values()]], default=str).encode())
    file.seek(0)
    file.write(
        _header(
            entries,
            {**told, "largest": {name: most for name, (_, most) in largest.items()}, "sha256": digest.hexdigest()},
            len(blank),
        )
    )
    file.flush()
    os.fsync(file.fileno())


def _header(entries: Mapping[str, Any], told: Mapping[str, Any], size: int = 0) -> bytes:
    """Eight bytes of length, then JSON, filled up with spaces to a multiple of 8, or to `size`."""
    text = json.dumps({"__metadata__": {KEY: json.dumps(told, default=str)}, **entries}).encode()
    filled = text.ljust(size - 8 if size else -(-len(text) // 8) * 8)
    return len(filled).to_bytes(8, "little") + filled


def _joined(parts: Sequence[Examples], entries: Mapping[str, Any]) -> Iterator[Batch]:
    """The examples of all parts in turn, so many at once that neither a call nor a copy weighs."""
    wanted = {name.removeprefix("data."): (e["dtype"], e["shape"][1:]) for name, e in entries.items() if name.startswith("data.")}
    a_row = sum(
        (e["data_offsets"][1] - e["data_offsets"][0]) // max(1, e["shape"][0])
        for e in (entries[f"data.{name}"] for name in wanted)
    )
    step = max(1, _AT_ONCE_BYTES // max(1, a_row))
    waiting: list[Batch] = []
    count = 0
    for part in parts:
        for start in range(0, len(part), step):
            batch = _rows(part, start, min(start + step, len(part)))
            found = {name: (DTYPES.get(x.dtype), list(x.shape[1:])) for name, x in batch.items()}
            if found != wanted:
                raise DataError(f"examples differ in their columns, {found} and {wanted}; a file of columns needs them alike.")
            waiting.append(batch)
            count += min(step, len(part) - start)
            if count >= step:
                yield {name: torch.cat([batch[name] for batch in waiting]) for name in wanted}
                waiting, count = [], 0
    if waiting:
        yield {name: torch.cat([batch[name] for batch in waiting]) for name in wanted}


def _rows(part: Examples, start: int, stop: int) -> Batch:
    if not isinstance(part, Tensors):
        return part.take(torch.arange(start, stop))
    span = part.span(start, stop)
    return {name: span.column(name) for name in part.columns}
