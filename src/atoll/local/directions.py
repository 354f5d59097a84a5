"""Random directions that nobody sends: each is drawn again from its number, and added to weights so that it comes off exactly.

Each tensor lies on a grid of its own: its entries are whole multiples, below 2^24, of a power of two, and so is all that
is added to them. Such sums are exact in float32, so that (arXiv:2312.06353, equation 6)

    w = w0 + sum_j round(c_j z_j)          c_j: the coefficient of direction j; round: to the nearest multiple

has the same bits in whatever order the terms came, were taken off and came again; on every device that rounds as IEEE 754
says, since nothing but products, rounding and exact sums is computed. Weights that follow coefficients as these change
are those that a newcomer makes from w0, and a perturbation costs no copy of the model: it is added, and taken off again.
z comes from Philox4x64 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by (run and tensor's
name, j), through a table of values: no logarithm is taken of a draw, which no two libraries round alike.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from statistics import NormalDist
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atoll import rng
from atoll.errors import ConfigError, RoundError
from atoll.types import Tree

Draw: TypeAlias = Literal["gaussian", "rademacher"]
Floats: TypeAlias = NDArray[Any]

ROOM = 4  # a tensor may grow to this many times its largest entry (or 1, if that is more)
_CHUNK = 1 << 16  # entries; a multiple of what one word of the generator makes
_WHOLE = float(1 << 24)  # up to here float32 holds every whole number


class Directions(NamedTuple):
    """Some candidates; direction j of a tensor depends on seed, name and j alone.

    draw: "gaussian" (2^16 equally likely values of a normal, 2 bytes of the generator each), or "rademacher" (+1 or -1,
    a bit each: some four times as fast). Both have mean 0 and variance 1.
    """

    candidates: int = 4096
    seed: int = 0
    draw: Draw = "gaussian"


class Grid(NamedTuple):
    """One tensor on its grid."""

    values: Tensor  # float32, contiguous; changed in place
    step: float  # a power of two


Grids: TypeAlias = Mapping[str, Grid]
Term: TypeAlias = tuple[int, float]  # (how often, c): so many times round(c z)


def on_grids(params: Mapping[str, Tensor]) -> dict[str, Grid]:
    """Copies of the tensors in float32, each rounded to multiples of its step, about 2^-22 of its largest entry.

    >>> grid = on_grids({"w": torch.tensor([0.1, 3.0])})["w"]
    >>> grid.step == 2.0**-20, abs(float(grid.values[0]) - 0.1) < grid.step
    (True, True)
    """
    return {name: _on_grid(name, x.detach()) for name, x in params.items()}


def _on_grid(name: str, x: Tensor) -> Grid:
    largest = float(x.abs().max()) if x.numel() else 0.0
    if not math.isfinite(largest):
        raise ConfigError(f"{name} holds NaN or infinity: fedkseed starts from finite weights")
    step = 2.0 ** math.ceil(math.log2(max(largest, 1.0))) * ROOM / _WHOLE
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32, copy=True)
    values = wide.div_(step).round_().mul_(step).add_(0.0)  # -0.0, which no sum gives back, becomes 0.0
    return Grid(values.float().contiguous(), step)


def add_(grids: Grids, directions: Directions, j: int, *terms: Term) -> None:
    """w += sum of times * round(c z_j) over the terms, in place; exactly, so that the opposite terms undo it.

    Raises:
        RoundError: an entry has left its grid (it has grown `ROOM` times); some chunks are changed then, others not.

    >>> grids, candidates = on_grids({"w": torch.zeros(5)}), Directions()
    >>> add_(grids, candidates, 7, (1, 0.1), (1, 1e-3))
    >>> add_(grids, candidates, 7, (-1, 1e-3))
    >>> add_(grids, candidates, 7, (-1, 0.1))
    >>> grids["w"].values.tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0]
    """
    values = values_of(directions.draw)
    large = sum(grid.values.numel() for grid in grids.values()) > values.size
    tables: dict[float, Floats] = {}  # by step: for a large model, what is added for each value that z can take
    for name, grid in grids.items():
        if large and grid.step not in tables:
            tables[grid.step] = _sum(values, terms, grid.step)
        for piece, index in _drawn(grid.values.view(-1), directions, name, j):
            table = tables.get(grid.step, values)
            added = np.take(table, index, axis=0, mode="clip").reshape(-1)[: piece.numel()]
            _add_piece_(piece, added if large else _sum(added, terms, grid.step), name, grid.step)


def _sum(z: Floats, terms: tuple[Term, ...], step: float) -> Floats:
    total = np.zeros_like(z)
    for times, c in terms:
        total += times * np.rint(z * (c / step))
    if not float(np.abs(total).max(initial=0.0)) <= _WHOLE:
        raise RoundError(_left("a tensor", step))
    return (total * step).astype(np.float32)


def _drawn(flat: Tensor, directions: Directions, name: str, j: int) -> Iterator[tuple[Tensor, NDArray[Any]]]:
    """A tensor in pieces, and for each the indices into `values_of` that make z_j there."""
    values, bits = values_of(directions.draw), np.random.Philox(key=np.array([_key(directions.seed, name), j], np.uint64))
    index_type = np.uint8 if values.ndim == 2 else np.uint16
    wide = values[0].size  # entries that one index makes
    for start in range(0, flat.numel(), _CHUNK):
        piece = flat[start : start + _CHUNK]
        indices = -(-piece.numel() // wide)
        words = bits.random_raw(-(-indices * index_type().itemsize // 8))
        yield piece, words.view(index_type)[:indices]


def _add_piece_(piece: Tensor, added: Floats, name: str, step: float) -> None:
    piece.add_(torch.from_numpy(added).to(piece.device))
    low, high = torch.aminmax(piece)
    if not max(float(high), -float(low)) <= step * _WHOLE:
        raise RoundError(_left(name, step))


def _left(name: str, step: float) -> str:
    return f"{name} has grown beyond {step * _WHOLE:g}, {ROOM} times its largest first weight: lower fedkseed's lr or eps"


@functools.lru_cache(maxsize=4096)
def _key(seed: int, name: str) -> int:
    return rng.seed(seed, "direction", name)


@functools.cache
def values_of(draw: Draw) -> Floats:
    """What z can be, all equally likely: float64 (2^16,) for a normal, (2^8, 8) for the signs that 8 bits make.

    >>> [
    ...     (abs(float(values_of(draw).mean())) < 1e-12, round(float(values_of(draw).var()), 4))
    ...     for draw in ("gaussian", "rademacher")
    ... ]
    [(True, 1.0), (True, 1.0)]
    """
    if draw == "rademacher":
        return 1.0 - 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    if draw != "gaussian":
        raise ConfigError(f"draw = {draw!r}: must be 'gaussian' or 'rademacher'")
    # Means of equally likely slices would do as well as their middles; whole multiples of 2^-16 are the same everywhere.
    quantile = NormalDist().inv_cdf
    half = [round(quantile((k + 0.5) / 2**16) * 2**16) / 2**16 for k in range(2**15)]
    return np.array([*half, *(-x for x in reversed(half))])


class Weights:
    """A model's parameters at some coefficients; `at` moves them in place to others, drawing only what differs.

    Their bits depend on the coefficients alone. A mapping of the tensors that a module computes with is `params`.

    >>> weights = Weights({"w": torch.ones(3)}, Directions(8))
    >>> g = np.zeros(8, np.float32)
    >>> g[2] = 0.5
    >>> weights.at(g)
    >>> weights.at(0 * g)
    >>> weights.params["w"].tolist()
    [1.0, 1.0, 1.0]
    """

    def __init__(self, start: Mapping[str, Tensor], directions: Directions) -> None:
        """From w0: `start`, rounded to the grid. Parameters of narrower dtypes are kept in float32 and cast from there."""
        self._start, self._directions = start, directions
        self._grids: dict[str, Grid] = {}
        self._level: Floats | None = None  # None: unknown, after something has failed half-way
        self.params: dict[str, Tensor] = {}

    def start(self) -> Grids:
        """w0 on its grids, in place: to be looked at before anything else is asked for."""
        self.at(np.zeros(self._directions.candidates))
        return self._grids

    def at(self, level: Floats) -> None:
        """w = w0 + sum_j round(level_j z_j). level: float64 (candidates,)."""
        now, self._level = self._known(), None  # if anything fails on the way, the next call begins from w0
        for j in np.flatnonzero(now != level).tolist():
            add_(self._grids, self._directions, j, (-1, float(now[j])), (1, float(level[j])))
        self._level = level.copy()
        self._cast()

    def try_out(self, j: int, eps: float, loss: Callable[[], float], then: Callable[[float, float], float]) -> None:
        """Ask for the loss at w + eps z_j and at w - eps z_j; the coefficient of j is then `then` of the two."""
        level = self._known()
        now = float(level[j])
        self._level = None  # if anything fails on the way, the next `at` begins from w0
        self._add(j, (1, eps))
        above = loss()
        self._add(j, (-2, eps))
        after = then(above, loss())
        self._add(j, (1, eps), (-1, now), (1, after))
        level[j] = after
        self._level = level

    def _known(self) -> Floats:
        if self._level is None:
            self._grids, self.params = {}, {}  # freed before they are made again
            self._grids = on_grids(self._start)
            self.params = {name: self._bound(name) for name in self._grids}
            self._level = np.zeros(self._directions.candidates)
        return self._level

    def _add(self, j: int, *terms: Term) -> None:
        add_(self._grids, self._directions, j, *terms)
        self._cast()

    def _cast(self) -> None:
        for name, x in self.params.items():
            if x is not self._grids[name].values:
                x.copy_(self._grids[name].values)

    def _bound(self, name: str) -> Tensor:
        values, dtype = self._grids[name].values, self._start[name].dtype
        return values if dtype == torch.float32 else values.to(dtype)


def sha256(tree: Tree) -> str:
    """The SHA-256 of names, dtypes, shapes and bytes, in the order of the names.

    >>> (
    ...     sha256({"w": torch.ones(2)}) == sha256({"w": torch.ones(2)}),
    ...     sha256({"w": torch.ones(2)}) == sha256({"w": torch.ones(2, 1)}),
    ... )
    (True, False)
    """
    digest = hashlib.sha256()
    for name in sorted(tree):
        x = tree[name].detach().cpu().contiguous()
        digest.update(repr((name, str(x.dtype), tuple(x.shape))).encode())
        if x.numel():
            digest.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
