"""Count sketch of updates, what it loses kept at the server (FetchSGD, Rothchild et al. 2020, arXiv:2007.07682).

A sketch is a small table that is linear in the vector x that it is made of (Charikar, Chen, Farach-Colton 2002):

    S(x)[r, c] = sum over i with h_r(i) = c of s_r(i) x_i        x_i ~ median over r of s_r(i) S(x)[r, h_r(i)]

with hashes h_r onto the columns and s_r onto +1 and -1. The server adds the mean of the clients' tables to what it still
owes, takes the k entries of largest estimate, and subtracts their sketch (FetchSGD's algorithm 1 without momentum):

    S_e <- S_e + mean of S(x_i)    delta = top-k of the estimates of S_e    S_e <- S_e - S(delta)

Where we deviate: its momentum, kept in a table too, is left to the server's optimiser; the table is a share of the model, not
of a given width; the hash is that of MurmurHash3's end, and columns are any number.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from atoll import rng, tree
from atoll.errors import ConfigError, TreeError
from atoll.transforms.compress.coded import model_table, read_table, spread, vector, written_table
from atoll.types import Assignment, Properties, Reduced, Transform, Tree, Update

TRAFFIC = {"bits": 32, "per": "share"}
Keys: TypeAlias = list[tuple[int, int]]
_MARK = "sketch/1="
_SUMS = _MARK + "sums"
_AT_ONCE = 1 << 16  # entries: a chunk and its hashes stay in a core's cache
_MOST = 1 << 31  # entries that a 32-bit hash tells apart
_MIX = ((16, 0x85EBCA6B - (1 << 32)), (13, 0xC2B2AE35 - (1 << 32)), (16, 1))  # MurmurHash3's fmix32: shifts and factors


class Owed(NamedTuple):
    """The server's side: the hashes' seed, the model's table, and the sketch of what was not applied yet."""

    seed: int
    table: Tensor  # uint8: names, dtypes and shapes
    error: Tensor  # float32 (rows, columns)


def sketch(share: float = 0.25, rows: int = 5, fraction: float = 0.005, seed: int = 0) -> Transform[Owed]:
    """A table of `share` as many numbers as the model has, which a secure sum may add; the server applies the largest entries.

    `rows`: hashes, whose estimates a median is taken of. `fraction`: of all entries, applied each round. There are
    share / rows as many columns as entries; with five rows, ten columns for each entry applied keep what is owed in
    proportion to what was sent, while 2.5 (or 17 with three rows) let false entries feed on one another until it overflows.
    It suits updates whose length is in few entries: of dense ones it applies little. `seed`: of the hashes, the same in
    all rounds, since tables of several rounds are added.

    Raises:
        ConfigError: share is not in (0, 1], rows is below 1, fraction is not in (0, 1], or seed is below 0.

    >>> one, given = sketch(share=1.0, fraction=0.01), {"w": torch.arange(200.0)}
    >>> state, u = one.init(given), Update(0, "a", "train", given, 1.0, {})
    >>> sent, _ = one.encode(None, one.broadcast(state), {}, u)
    >>> found, state = one.finish(state, Reduced(sent.tree, ["a"], {}))
    >>> {name: tuple(x.shape) for name, x in sent.tree.items()}, found["w"].count_nonzero().item()
    ({'sketch/1=sums': (5, 40)}, 2)
    """
    if not 0 < share <= 1:
        raise ConfigError(f"sketch share = {share}: must be above 0 and at most 1, of the model's entries")
    if rows < 1:
        raise ConfigError(f"sketch rows = {rows}: must be 1 or more hashes")
    if not 0 < fraction <= 1:
        raise ConfigError(f"sketch fraction = {fraction}: must be above 0 and at most 1, of the model's entries")
    if seed < 0:
        raise ConfigError(f"sketch seed = {seed}: must be 0 or more")

    def init(params: Tree) -> Owed:
        table = model_table(params)
        return Owed(seed, written_table(table), _empty(table.numbers, rows, share))

    def broadcast(state: Owed) -> Tree:
        entries = read_table(state.table, None).numbers
        return {"seed": torch.tensor(state.seed), "entries": torch.tensor(entries)}

    def encode(assignment: Assignment, told: Tree, memory: Tree, update: Update) -> tuple[Update, Tree]:
        ours = {name: x for name, x in update.tree.items() if x.is_floating_point()}
        flat = vector(update.tree if len(ours) == len(update.tree) else ours) if ours else torch.empty(0)
        if len(flat) != int(told["entries"]):
            raise TreeError(f"sketch: an update of {len(flat)} entries is not of the model, which has {int(told['entries'])}")
        sums, keys = _empty(len(flat), rows, share), _keys(int(told["seed"]), rows)
        for at in range(0, len(flat), _AT_ONCE):
            part = flat[at : at + _AT_ONCE]
            _add(sums, torch.arange(at, at + len(part), dtype=torch.int32), part, keys)
        return update._replace(tree={**_others(update.tree), _SUMS: sums}), {}

    def form(like: Tree) -> Tree:
        return {**_others(like), _SUMS: _empty(model_table(like).numbers, rows, share)}

    def finish(state: Owed, reduced: Reduced) -> tuple[Tree, Owed]:
        table, keys = read_table(state.table, None), _keys(state.seed, rows)
        error = state.error + reduced.tree[_SUMS]
        guess = _estimate(error, table.numbers, keys)
        top = guess.abs().topk(max(round(fraction * len(guess)), min(len(guess), 1)), sorted=False).indices.sort().values
        applied = torch.zeros_like(guess).index_copy_(0, top, guess[top])
        for at in range(0, len(top), _AT_ONCE):
            part = top[at : at + _AT_ONCE]
            _add(error, part.int(), -guess[part], keys)
        return {**tree.drop(reduced.tree, _MARK), **spread(applied, table)}, state._replace(error=error)

    properties = Properties(linear=True, shared=True, feedback=True)
    return Transform("sketch", init, broadcast, encode, None, finish, properties, form)


def _others(values: Tree) -> Tree:
    """What is not sketched."""
    return {name: x for name, x in values.items() if not x.is_floating_point()}


def _empty(entries: int, rows: int, share: float) -> Tensor:
    """The sketch of nothing; at least one column."""
    if entries >= _MOST:
        raise ConfigError(f"sketch: a model of {entries} entries has more than a 32-bit hash tells apart; use top_k")
    return torch.zeros(rows, max(round(share * entries / rows), 1))


def _add(sums: Tensor, index: Tensor, values: Tensor, keys: Keys) -> None:
    """Add to a sketch, in place, that of a vector which has these values at these places."""
    for row, key in zip(sums, keys, strict=True):
        column, sign = _place(index, len(row), key)
        row.scatter_add_(0, column, _signed(values, sign))


def _estimate(sums: Tensor, entries: int, keys: Keys) -> Tensor:
    """The entries that a sketch is of, float32 (entries,), up to collisions."""
    found = torch.empty(entries)
    for at in range(0, entries, _AT_ONCE):
        index = torch.arange(at, min(at + _AT_ONCE, entries), dtype=torch.int32)
        each = []
        for row, key in zip(sums, keys, strict=True):
            column, sign = _place(index, len(row), key)
            each.append(_signed(row.index_select(0, column), sign))
        found[at : at + len(index)] = _median(each)
    return found


def _median(each: list[Tensor]) -> Tensor:
    """Element-wise; of an even number, the mean of the two in the middle. A few passes of neighbours put in order."""
    rows = len(each)
    for turn in range(rows):
        for at in range(turn % 2, rows - 1, 2):
            each[at], each[at + 1] = torch.minimum(each[at], each[at + 1]), torch.maximum(each[at], each[at + 1])
    middle = each[rows // 2]
    return middle if rows % 2 else (each[rows // 2 - 1] + middle) / 2


def _keys(seed: int, rows: int) -> Keys:
    """Of each row, the odd factor and the offset that its hash begins with."""
    drawn = torch.randint(-(1 << 31), 1 << 31, (rows, 2), generator=rng.generator(seed, "sketch")).tolist()
    return [(factor | 1, offset) for factor, offset in drawn]


def _place(index: Tensor, columns: int, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The column of each index, int64 (n,), and the bit that a sign of -1 turns over in a float32, int32 (n,)."""
    x = index.mul(key[0]).add_(key[1])
    for shift, times in _MIX:  # >> keeps the sign, which the mask takes off
        x.bitwise_xor_((x >> shift).bitwise_and_((1 << 32 - shift) - 1)).mul_(times)
    sign = x.bitwise_and(-(1 << 31))
    return x.bitwise_and_((1 << 31) - 1).double().mul_(columns / (1 << 31)).long(), sign


def _signed(values: Tensor, sign: Tensor) -> Tensor:
    return values.view(torch.int32).bitwise_xor(sign).view(torch.float32)
