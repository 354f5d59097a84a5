"""From a coder of one vector to a transform of updates: what all codecs share.

A codec takes every floating-point tensor of an update, laid end to end, and puts a few tensors of its own in their place,
named `topk/1=values`: its wire id, and what it is. Among them is the table of what it replaced, so that an encoded update
describes itself; it is left out where it is that of the model, which both ends know. Other tensors stay as they are. A codec
attached after it works on what it made, if that is floating-point.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from atoll import tree
from atoll.errors import FrameError, TreeError
from atoll.types import Assignment, Properties, Transform, Tree, Update
from atoll.wire import table as tables
from atoll.wire.table import Table, table_of

Parts = Mapping[str, Tensor]
NOTHING = Properties()
SPARE = 1 << 16  # entries that an update may announce beyond those of the model: scales, seeds, positions


class Coder(NamedTuple):
    """How a vector becomes a few small tensors and comes back: pure, its randomness the seed alone.

    `decode` raises TreeError, before it allocates, where the parts are not those that `encode` makes of so many entries.
    """

    encode: Callable[[Tensor, int], Parts]  # (float32 (n,), contiguous, n >= 1; seed) -> parts, each with a short name
    decode: Callable[[Parts, int], Tensor]  # (parts, n) -> float32 (n,)


def coded(wire_id: str, coder: Coder, properties: Properties = NOTHING) -> Transform[None]:
    """The transform that sends the floating-point tensors of an update through `coder`.

    `wire_id`: name and version, such as `topk/1`; a version never changes its meaning.

    >>> halves = Coder(lambda x, seed: {"half": x.half()}, lambda parts, n: parts["half"].float())
    >>> sent = coded("half/1", halves).encode(None, {}, {}, Update(0, "a", "train", {"w": torch.ones(2, 2)}, 1.0, {}))[0]
    >>> list(sent.tree), coded("half/1", halves).decode(sent, None).tree["w"].shape
    (['half/1=table', 'half/1=half'], torch.Size([2, 2]))
    """
    mark = f"{wire_id}="

    def encode(assignment: Assignment, broadcast: Tree, memory: Tree, update: Update) -> tuple[Update, Tree]:
        seed, known = (0, None) if assignment is None else (assignment.seed, model_table(assignment.tree))
        return update._replace(tree=replaced(update.tree, mark, lambda x: coder.encode(x, seed), known)), {}

    def decode(update: Update, like: Tree | None) -> Update:
        return update._replace(tree=restored(update.tree, mark, coder.decode, like))

    name = wire_id.partition("/")[0]
    return Transform(name, lambda w: None, lambda s: {}, encode, decode, lambda s, r: (r.tree, s), properties)


def replaced(values: Tree, mark: str, encode: Callable[[Tensor], Parts], known: Table | None = None) -> Tree:
    """A tree with its floating-point tensors encoded as one vector, beside them their table unless it is `known` at the server.

    A tree without floating-point entries stays as it is.
    """
    ours = {name: x for name, x in values.items() if x.is_floating_point()}
    if not any(x.numel() for x in ours.values()):
        return values
    flat = values if isinstance(values, tree.Flat) and len(ours) == len(values) else ours
    parts, table = encode(vector(flat)), table_of(flat)
    made = {mark + name: part for name, part in parts.items()}
    if table != known:
        made = {mark + "table": written_table(table), **made}
    return {**{name: x for name, x in values.items() if name not in ours}, **made}


def restored(values: Tree, mark: str, decode: Callable[[Parts, int], Tensor], like: Tree | None) -> Tree:
    """The tree that `replaced` was given, up to what the coder loses.

    Raises:
        TreeError: the table is not one, or announces more than an update of `like` can hold; the coder's own.
    """
    if not any(name.startswith(mark) for name in values):
        return values
    table = read_table(values.get(mark + "table"), like)
    parts = tree.take(values, mark)
    try:
        found = decode({name: part for name, part in parts.items() if name != "table"}, table.numbers)
    except (KeyError, RuntimeError, IndexError, ValueError) as error:
        raise TreeError(f"an update does not decode as {mark[:-1]}: {str(error).partition(chr(10))[0]}") from None
    if found.numel() != table.numbers:
        raise TreeError(f"an update decodes as {mark[:-1]} to {found.numel()} entries, and its table has {table.numbers}")
    rest = {name: x for name, x in values.items() if not name.startswith(mark)}
    return {**rest, **spread(found, table)} if rest else spread(found, table)


def model_table(sent: Tree) -> Table:
    """The table of the floating-point tensors of the model in what a client was sent, or in what a server expects."""
    if isinstance(sent, tree.Flat) and sent.buffer.is_floating_point():
        return table_of(sent)
    return table_of({name: x for name, x in sent.items() if x.is_floating_point() and not name.startswith("~")})


def vector(values: Tree) -> Tensor:
    """All entries of a tree as one contiguous float32 vector."""
    if isinstance(values, tree.Flat):
        return values.buffer.detach().float()
    return torch.cat([x.detach().reshape(-1).float() for x in values.values()])


def spread(x: Tensor, table: Table) -> Tree:
    """A float32 vector as the tensors of a table."""
    dtypes = {entry.dtype for entry in table.entries}
    if len(dtypes) == 1:
        layout = tree.Layout(tuple(e.name for e in table.entries), tuple(torch.Size(e.shape) for e in table.entries))
        return tree.Flat(layout, x.to(dtypes.pop()))
    shapes = [torch.Size(entry.shape) for entry in table.entries]
    pieces = x.split_with_sizes([shape.numel() for shape in shapes])
    return {e.name: p.view(s).to(e.dtype) for e, p, s in zip(table.entries, pieces, shapes, strict=True)}


@functools.lru_cache(maxsize=64)
def written_table(table: Table) -> Tensor:
    """A table as the part that carries it."""
    return torch.frombuffer(bytearray(tables.write(table)), dtype=torch.uint8)


def read_table(data: Tensor | None, like: Tree | None) -> Table:
    """The table of what was encoded; None: that of the model in `like`.

    Raises:
        TreeError: it is not one, or announces more than an update of `like` can hold.
    """
    if data is None:
        if like is None:
            raise TreeError("an encoded update leaves out the table of what it encodes, and this algorithm does not say it")
        return model_table(like)
    if data.dtype != torch.uint8 or data.dim() != 1:
        raise TreeError(f"an encoded update's table is {data.dtype} {tuple(data.shape)}; it should be bytes")
    try:
        table = tables.read(data.numpy().tobytes())
    except FrameError as error:
        raise TreeError(str(error)) from None
    if not all(entry.dtype.is_floating_point for entry in table.entries):
        raise TreeError("an encoded update's table names tensors that are not floating-point, which no codec encodes")
    most = None if like is None else sum(x.numel() for x in like.values()) + SPARE
    if most is not None and table.numbers > most:
        raise TreeError(f"an encoded update announces {table.numbers} entries; an update of this job has {most - SPARE}")
    return table
