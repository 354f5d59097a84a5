"""Scales a block: what the codecs share that divide a vector into blocks, each measured by its largest entry."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from atoll.errors import ConfigError, TreeError

AT_ONCE = 1 << 17  # entries: a chunk and what is computed from it stay in a core's cache of 1 to 2 MB
MOST = torch.finfo(torch.float32).max
LEAST = torch.finfo(torch.float32).tiny  # the smallest scale: the reciprocal of a smaller one would be infinite
_ODD = np.uint64(0x0001_0001_0001_0001)


def width(codec: str, block: int) -> int:
    """The entries to a scale, if a codec may have as many.

    >>> width("int8", 1)
    Traceback (most recent call last):
    atoll.errors.ConfigError: int8 block = 1: must be 2 or more entries to a scale
    """
    if block < 2:
        raise ConfigError(f"{codec} block = {block}: must be 2 or more entries to a scale")
    return block


def chunks(x: Tensor, block: int) -> Iterator[tuple[int, Tensor]]:
    """Views (first entry, rows of one block each); the last row may be a shorter one, by itself.

    >>> [(at, tuple(rows.shape)) for at, rows in chunks(torch.zeros(7), 3)]
    [(0, (2, 3)), (6, (1, 1))]
    """
    whole, step = len(x) // block * block, max(AT_ONCE // block, 1) * block
    for at in range(0, whole, step):
        yield at, x[at : min(at + step, whole)].view(-1, block)
    if whole < len(x):
        yield whole, x[whole:].view(1, -1)


def quantised(
    x: Tensor, block: int, reach: float, seed: int | None = None, scale_as: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Codes int8 (n,) of magnitude floor(reach) at most and a scale a block: x = scale q, scale = max |x| / reach of the block.

    `seed`: None rounds to the nearest; a number rounds up or down with the probabilities that make the mean x (QSGD,
    arXiv:1610.02132, section 3.1), from 15 random bits an entry. A NaN or an infinity is the scale of its block.

    >>> [part.tolist() for part in quantised(torch.tensor([2.0, -0.9, 0.0]), 2, 2)]
    [[2, -1, 0], [1.0, 1.1754943508222875e-38]]
    """
    q, scale = torch.empty(len(x), dtype=torch.int8), torch.empty(-(-len(x) // block), dtype=scale_as)
    room, bits = torch.empty(min(len(x), max(AT_ONCE, block))), None if seed is None else np.random.SFC64(seed)
    most = int(reach)
    up = 1.0 if scale_as == torch.float32 or most < reach else 1 + 2**-8 + 2**-15  # never rounded down: no code above `most`
    for at, rows in chunks(x, block):
        own = scale[at // block : at // block + len(rows)]
        own.copy_(tops(rows).mul_(up / reach).clamp_(min=LEAST))
        y = torch.mul(rows, own.float().reciprocal().view(-1, 1), out=room[: rows.numel()].view(rows.shape))
        if bits is not None:
            y.view(-1).add_(noise(bits, y.numel()), alpha=2**-16)
        y.round_()
        q[at : at + y.numel()].view(rows.shape).copy_(y if most == reach else y.clamp_(-most, most))
    return q, bounded(scale, most)


def tops(rows: Tensor) -> Tensor:
    """max |x| of each row, NaN where it has one."""
    return torch.maximum(rows.amax(1), rows.amin(1).neg_())


def bounded(scale: Tensor, levels: int) -> Tensor:
    """Scales of which `levels` are no infinity, unless the scale is itself: only entries at the end of the range feel it."""
    most = torch.tensor(MOST / levels).to(scale.dtype)
    most = torch.where(most.double() * levels > MOST, torch.nextafter(most, torch.zeros_like(most)), most)
    return torch.where(scale.isinf(), scale, scale.clamp(max=most))


def noise(bits: np.random.SFC64, n: int) -> Tensor:
    """Odd int16 (n,), uniform and of mean zero: 2^-16 of them is in (-1/2, 1/2). NumPy's stream is the same everywhere."""
    return torch.from_numpy((bits.random_raw(-(-n // 4)) | _ODD).view(np.int16)[:n])


def times(codes: Tensor, scale: Tensor, block: int) -> Tensor:
    """Each code times the scale of its block, float32 (n,).

    >>> times(torch.tensor([1, -1, 1], dtype=torch.int8), torch.tensor([2.0, 3.0]), 2).tolist()
    [2.0, -2.0, 3.0]
    """
    x = torch.empty(len(codes))
    for at, rows in chunks(codes, block):
        own = scale[at // block : at // block + len(rows)].float().view(-1, 1)  # the product is of the wider of two dtypes
        torch.mul(rows, own, out=x[at : at + rows.numel()].view(rows.shape))
    return x


def expect(part: Tensor, dtype: torch.dtype, length: int, what: str) -> Tensor:
    """The part, if it is one row of so many entries of that dtype.

    Raises:
        TreeError: it is not.
    """
    if part.dtype != dtype or part.shape != (length,):
        raise TreeError(f"{what} are {part.dtype} {tuple(part.shape)}, and should be {dtype} ({length},)")
    return part
