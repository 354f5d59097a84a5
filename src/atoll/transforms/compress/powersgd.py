"""PowerSGD (Vogels et al. 2019, arXiv:1905.13727): each matrix of an update as a product of two thin ones.

One step of subspace iteration a round, from where the last one ended (their algorithm 1):

    P = orth(M Q)    Q' = M^T P    the server decodes P Q'^T, the part of M in the span of P

so that |M - P Q'^T| <= |M|. It loses the same directions round after round unless what it loses comes back: wrap it in
error feedback, `feedback([powersgd(4)])`.

Where we deviate: P and Q' are each client's own and decoded one by one. In the paper workers average P before Q' is
computed, a second exchange in each round, and share what comes out; Q then follows the mean, here a client's own updates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from atoll import rng, tree
from atoll.errors import ConfigError, TreeError
from atoll.transforms.compress.coded import model_table, read_table, spread, written_table
from atoll.types import Assignment, Properties, Transform, Tree, Update
from atoll.wire.table import Table, table_of

TRAFFIC = {
    "per": "rank",
    "points": [[1, 0.54], [2, 0.88], [4, 1.58], [8, 2.96]],
}  # a transformer of width 128, 0.19 of it vectors
_MARK = "powersgd/1="


def powersgd(rank: int = 4) -> Transform[None]:
    """Matrices as two factors of `rank` columns, P (m, r) and Q' (n, r) for M (m, n); to be wrapped in `feedback`.

    A tensor of more axes is a matrix of its first axis and the rest. What the factors would not make smaller stays as it is,
    for the links after this one, which also work on the factors. Q' stays in the client's memory as the next round's Q.

    Raises:
        ConfigError: rank is below 1.

    >>> given = Update(0, "a", "train", {"w": torch.outer(torch.arange(4.0), torch.ones(5))}, 1.0, {})
    >>> start = Assignment(0, "a", "train", given.tree, 7)
    >>> sent, memory = powersgd(rank=1).encode(start, {}, {}, given)
    >>> {name: tuple(x.shape) for name, x in sent.tree.items()}, memory["w"].shape
    ({'powersgd/1=p': (4,), 'powersgd/1=q': (5,)}, torch.Size([5, 1]))
    >>> bool(powersgd(rank=1).decode(sent, given.tree).tree["w"].allclose(given.tree["w"], atol=1e-5))
    True
    """
    if rank < 1 or rank != int(rank):
        raise ConfigError(f"powersgd rank = {rank}: must be a whole number of 1 or more columns")

    def encode(assignment: Assignment, broadcast: Tree, memory: Tree, update: Update) -> tuple[Update, Tree]:
        seed, known = (0, None) if assignment is None else (assignment.seed, _large(model_table(assignment.tree), rank))
        table = _large(table_of(update.tree), rank)
        if not table.entries:
            return update, {}
        draw, ps, qs = rng.generator(seed, "powersgd"), list[Tensor](), list[Tensor]()
        kept: dict[str, Tensor] = {}
        for name, _, shape in table.entries:
            matrix = update.tree[name].detach().float().view(shape[0], -1)
            start, before = torch.randn(matrix.shape[1], rank, generator=draw), memory.get(name)
            p, q, kept[name] = _factors(matrix, start if before is None or before.shape != start.shape else before)
            ps.append(p.reshape(-1))
            qs.append(q.reshape(-1))
        told = {} if table == known else {_MARK + "table": written_table(table)}
        rest = {name: x for name, x in update.tree.items() if name not in kept}
        return update._replace(tree={**rest, **told, _MARK + "p": torch.cat(ps), _MARK + "q": torch.cat(qs)}), kept

    def decode(update: Update, like: Tree | None) -> Update:
        parts, rest = tree.take(update.tree, _MARK), tree.drop(update.tree, _MARK)
        if not parts:
            return update
        if like is None:
            raise TreeError(
                "powersgd decodes to the product of what is sent, and this algorithm does not say how large it may be"
            )
        table = read_table(parts.get("table"), like)
        table = table if "table" in parts else _large(table, rank)
        dense = spread(_product(parts, table, rank), table)
        whole = {**rest, **dense}
        return update._replace(tree={name: whole[name] for name in like} if whole.keys() == like.keys() else whole)

    properties = Properties(memory=True)
    return Transform("powersgd", lambda w: None, lambda s: {}, encode, decode, lambda s, r: (r.tree, s), properties)


def _large(table: Table, rank: int) -> Table:
    """The tensors of a table that two factors make smaller."""
    return Table(tuple(e for e in table.entries if e.dtype.is_floating_point and _smaller(e.shape, rank)))


def _smaller(shape: Sequence[int], rank: int) -> bool:
    if len(shape) < 2:
        return False
    m, n = shape[0], math.prod(shape[1:])
    return rank * (m + n) < m * n


def _factors(matrix: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P (m, r), Q' (n, r), and the Q to start from next time, of any length but that of an overflow."""
    low, high = matrix.aminmax()
    peak = max(-float(low), float(high))
    if peak == 0 or not math.isfinite(peak):  # nothing to learn from; a NaN or infinity reaches the server as NaN
        nothing = matrix.new_full((len(start), start.shape[1]), peak * 0)
        return torch.eye(len(matrix), start.shape[1]), nothing, start
    scaled = matrix / peak
    p = torch.linalg.qr(scaled @ start).Q
    q = scaled.t() @ p
    return p, q * peak, q


def _product(parts: Tree, table: Table, rank: int) -> Tensor:
    """P Q'^T of all matrices of a table, laid end to end, once it is known that the factors are theirs."""
    if not all(_smaller(entry.shape, rank) for entry in table.entries):
        raise TreeError(f"powersgd's table has a tensor that factors of {rank} columns would not make smaller")
    sizes = [(shape[0], math.prod(shape[1:])) for _, _, shape in table.entries]
    found = []
    for name, axis in (("p", 0), ("q", 1)):
        lengths = [rank * size[axis] for size in sizes]
        part = parts.get(name)
        if part is None or not part.is_floating_point() or part.shape != (sum(lengths),):
            told = "missing" if part is None else f"{part.dtype} {tuple(part.shape)}"
            raise TreeError(f"powersgd's {name} is {told}; the matrices of its table have {sum(lengths)} entries there")
        found.append(part.float().split_with_sizes(lengths))
    dense, at = torch.empty(table.numbers), 0
    for p, q in zip(*found, strict=True):
        m, n = len(p) // rank, len(q) // rank
        torch.mm(p.view(m, rank), q.view(n, rank).t(), out=dense[at : at + m * n].view(m, n))
        at += m * n
    return dense
