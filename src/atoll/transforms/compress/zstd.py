"""All tensors of an update as one zstd stream (RFC 8878): lossless, of use where a codec before it leaves regularities."""

from __future__ import annotations

import math

import torch
import zstandard
from torch import Tensor

from atoll import tree
from atoll.errors import ConfigError, FrameError, TreeError
from atoll.transforms.compress.coded import SPARE, spread
from atoll.types import Assignment, Properties, Transform, Tree, Update
from atoll.wire import table as tables
from atoll.wire.table import Table, table_of

TRAFFIC = {"bits": 29.5}
_TABLE, _DATA = "zstd/1=table", "zstd/1=data"
_WIDEST = 8  # bytes an entry, of any dtype


def zstd(level: int = 1) -> Transform[None]:
    """All tensors, of any dtype, as one zstd stream: without loss, and nothing can be put behind it.

    Float32 updates shrink by a tenth at most, their mantissas being noise; what gains are updates with many equal entries.
    Levels above 1 are slower and no better on updates.

    Raises:
        ConfigError: level is not in 1 to 19.

    >>> update = Update(0, "a", "train", {"w": torch.zeros(1000), "count": torch.tensor(3)}, 1.0, {})
    >>> sent = zstd().encode(None, {}, {}, update)[0]
    >>> sent.tree["zstd/1=data"].numel() < 100, zstd().decode(sent, None).tree["count"]
    (True, tensor(3))
    """
    if not 1 <= level <= 19:
        raise ConfigError(f"zstd level = {level}: must be between 1 and 19")

    def encode(assignment: Assignment, broadcast: Tree, memory: Tree, update: Update) -> tuple[Update, Tree]:
        if not any(x.numel() for x in update.tree.values()):
            return update, {}
        table = table_of(update.tree)
        whole = sum(entry.size_bytes for entry in table.entries)
        stream = zstandard.ZstdCompressor(level=level).compressobj(size=whole)
        data = b"".join([*(stream.compress(_octets(x)) for x in _pieces(update.tree)), stream.flush()])
        return update._replace(tree={_TABLE: _bytes(tables.write(table)), _DATA: _bytes(data)}), {}

    def decode(update: Update, like: Tree | None) -> Update:
        return update if _DATA not in update.tree else update._replace(tree=_unpacked(update.tree, like))

    properties = Properties(entropy=True)
    return Transform("zstd", lambda w: None, lambda s: {}, encode, decode, lambda s, r: (r.tree, s), properties)


def _pieces(values: Tree) -> list[Tensor]:
    return [values.buffer] if isinstance(values, tree.Flat) else list(values.values())


def _octets(x: Tensor) -> memoryview:
    return x.detach().reshape(-1).contiguous().view(torch.uint8).numpy().data if x.numel() else memoryview(b"")


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _unpacked(values: Tree, like: Tree | None) -> Tree:
    """The tree that was encoded, nothing being unpacked before its size is known to be what the table says and allowed."""
    if set(values) != {_TABLE, _DATA} or any(x.dtype != torch.uint8 or x.dim() != 1 for x in values.values()):
        raise TreeError(f"an update of zstd/1 has the tensors {', '.join(sorted(values)[:4])}; it should have a table and data")
    packed = values[_DATA].numpy().tobytes()
    try:
        table = tables.read(values[_TABLE].numpy().tobytes())
        said = zstandard.frame_content_size(packed)
        wanted = sum(entry.size_bytes for entry in table.entries)
        most = None if like is None else _WIDEST * (sum(x.numel() for x in like.values()) + SPARE)
        if said != wanted or (most is not None and wanted > most):
            raise TreeError(f"an update of zstd/1 unpacks to {said} bytes, its table to {wanted}; {most} are allowed here")
        data = bytearray(zstandard.ZstdDecompressor().decompress(packed, max_output_size=wanted, allow_extra_data=False))
    except (FrameError, zstandard.ZstdError) as error:
        raise TreeError(f"an update of zstd/1 does not unpack: {error}") from None
    return _split(torch.frombuffer(data, dtype=torch.uint8), table)


def _split(data: Tensor, table: Table) -> Tree:
    dtypes = {entry.dtype for entry in table.entries}
    if len(dtypes) == 1:
        return spread(data.view(dtypes.pop()), table)
    made, at = {}, 0
    for entry in table.entries:
        piece = data[at : at + entry.size_bytes].clone()  # the next one's place may be no multiple of its dtype's size
        made[entry.name] = piece.view(entry.dtype).view(entry.shape)
        at += math.prod(entry.shape) * entry.dtype.itemsize
    return made
