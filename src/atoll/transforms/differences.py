"""A model as steps from version to version: encoded at the server, put together again at clients to the same bits.

A step brings what both ends hold nearer to the model. What a lossy codec leaves out of one step is in the next one, since
that is again the difference from what both ends hold: errors are compensated, and no residual is kept beside it
(DoubleSqueeze, Tang et al. 2019, arXiv:1905.05957, Algorithm 1, at the server).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atoll import tree
from atoll.errors import TreeError
from atoll.transforms.compress.coded import written_table
from atoll.types import Assignment, ClientId, Transform, Tree, Update
from atoll.wire import table as tables
from atoll.wire.table import table_of

MARK = "~broadcast/"
_TOLD, _VERSION, _MODEL, _BUFFER, _TABLE = "told", "version", "w/", "buffer", "table"
_WORD = 8
_NOBODY = ClientId("")


class Told(NamedTuple):
    """What a client is told of the model that it is to hold."""

    version: int
    steps: int  # that bring it there; 0: it is sent the model itself
    flat: int  # 1: its tensors are views of one buffer, as they are at the server
    check: int  # of its bits, so that ends that compute differently do not drift apart unnoticed


def step(codec: Transform[Any], new: Tree, old: Tree, seed: int) -> tuple[Tree, Tree]:
    """The encoded step from `old` towards `new`, and where it leads.

    >>> from atoll.transforms.compress.cast import cast
    >>> sent, public = step(cast("bf16"), {"w": torch.tensor([1.001])}, {"w": torch.tensor([1.0])}, 0)
    >>> sent["w"].dtype, round(float(public["w"]), 6)
    (torch.bfloat16, 1.000999)
    """
    with _one_thread():
        aim = new if codec.properties.reference else tree.sub(new, old)
        asked = Assignment(0, _NOBODY, "broadcast", old, seed)
        sent = codec.encode(asked, {}, {}, Update(0, _NOBODY, "broadcast", aim, 1.0, {}))[0].tree
    return sent, stepped(codec, sent, old)


def stepped(codec: Transform[Any], sent: Tree, old: Tree) -> Tree:
    """Where an encoded step leads from `old`: the same bits at both ends, whatever the number of their threads.

    Raises:
        TreeError: the step is not one of `codec`, or not one of this model.
    """
    with _one_thread():
        update = Update(0, _NOBODY, "broadcast", sent, 1.0, {})
        found = update.tree if codec.decode is None else codec.decode(update, old).tree
        tree.agree(old, found)
        new: Tree = {name: found[name] for name in old} if codec.properties.reference else tree.add(old, found)
    return flat(new) if isinstance(old, tree.Flat) else new


def coded(values: Tree) -> Tree:
    """What is sent in steps: floating-point tensors of the model; what transforms send beside it is not theirs to lose.

    >>> list(coded({"w": torch.ones(1), "n": torch.tensor(3), "~clip/norm": torch.ones(())}))
    ['w']
    """
    if isinstance(values, tree.Flat) and values.buffer.is_floating_point():
        return values
    return {name: x for name, x in values.items() if x.is_floating_point() and not name.startswith("~")}


def rest(values: Tree) -> Tree:
    """What is not sent in steps."""
    ours = coded(values)
    return {} if ours is values else {name: x for name, x in values.items() if name not in ours}


def whole_message(values: Tree, public: Tree, version: int) -> Tree:
    """The model itself, as it is known by that version."""
    return {**public, **rest(values), **_told(public, version, 0)}


def step_message(values: Tree, steps: Sequence[Tree], public: Tree, version: int) -> Tree:
    """The last steps to that version."""
    named = {f"{MARK}{i}~{name}": x for i, each in enumerate(steps) for name, x in each.items()}
    return {**rest(values), **_told(public, version, len(steps)), **named}


def received(codec: Transform[Any], sent: Tree, memory: Tree) -> tuple[Tree, Tree]:
    """The model that a client was sent, given its corner of memory; and that corner afterwards.

    Raises:
        TreeError: the steps do not begin where the client stands, or do not lead to the server's bits.
    """
    if MARK + _TOLD not in sent:
        return sent, memory
    told = Told(*sent[MARK + _TOLD].tolist())
    beside = {name: x for name, x in rest(sent).items() if not name.startswith(MARK)}
    if told.steps:
        public = _caught_up(codec, sent, memory, told)
        if checksum(public) != told.check:
            raise TreeError(f"version {told.version} of the model does not come out here as it did at the server")
    else:
        public = flat(coded(sent)) if told.flat else coded(sent)
    return ({**public, **beside} if beside else public), {_VERSION: torch.tensor(told.version), **_kept(public)}


def checksum(values: Tree) -> int:
    """The sum of each tensor's bytes as 64-bit integers, modulo 2^64: the same whatever the order in which it is taken.

    >>> checksum({"w": torch.tensor([0.0, -0.0])}) == checksum({"w": torch.tensor([0.0, 0.0])})
    False
    """
    parts = [values.buffer] if isinstance(values, tree.Flat) else values.values()
    return (sum(map(_sum, parts)) + (1 << 63)) % (1 << 64) - (1 << 63)  # as an int64 holds it


def _sum(x: Tensor) -> int:
    octets = x.detach().contiguous().view(-1).view(torch.uint8)
    if octets.storage_offset() % _WORD:
        octets = octets.clone()
    whole = len(octets) // _WORD * _WORD
    return int(octets[:whole].view(torch.int64).sum()) + int.from_bytes(bytes(octets[whole:].tolist()), "little")


def flat(values: Tree) -> Tree:
    """A tree of one dtype as views of one buffer."""
    if isinstance(values, tree.Flat):
        return values
    layout = tree.Layout(tuple(values), tuple(x.shape for x in values.values()))
    return tree.Flat(layout, torch.cat([x.reshape(-1) for x in values.values()]))


def _caught_up(codec: Transform[Any], sent: Tree, memory: Tree, told: Told) -> Tree:
    held = int(memory[_VERSION]) if memory else 0
    lacking = told.version - held
    if not held or not 0 <= lacking <= told.steps:
        stands = f"holds version {held}" if held else "holds no model"
        raise TreeError(f"{told.steps} steps to version {told.version} of the model: this client {stands}, and can't follow them")
    public = _recalled(memory)
    for i in range(told.steps - lacking, told.steps):
        public = stepped(codec, tree.take(sent, f"{MARK}{i}~"), public)
    return public


def _kept(public: Tree) -> Tree:
    """A model in a client's memory: one buffer as one tensor, since a client is asked often and a model may have many."""
    if isinstance(public, tree.Flat):
        return {_TABLE: written_table(table_of(public)), _BUFFER: public.buffer}
    return tree.put(public, _MODEL)


def _recalled(memory: Tree) -> Tree:
    if _BUFFER in memory:
        return tree.Flat(_layout(memory[_TABLE].numpy().tobytes()), memory[_BUFFER])
    return tree.take(memory, _MODEL)


@functools.lru_cache(maxsize=64)
def _layout(written: bytes) -> tree.Layout:
    entries = tables.read(written).entries
    return tree.Layout(tuple(each.name for each in entries), tuple(torch.Size(each.shape) for each in entries))


def _told(public: Tree, version: int, steps: int) -> Tree:
    return {MARK + _TOLD: torch.tensor(Told(version, steps, int(isinstance(public, tree.Flat)), checksum(public)))}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums are taken in an order that depends on the number of threads; `round` calls have as many as the machine."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
