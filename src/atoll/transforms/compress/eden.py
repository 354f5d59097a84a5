"""EDEN (Vargaftik et al. 2022, arXiv:2108.08842; of 1 bit DRIVE, arXiv:2105.08339): rotate at random, 1 to 4 bits an entry.

A rotation R drawn from a seed makes the entries of any vector look like draws of one Gaussian, for which the levels of
least squared error are known (Lloyd 1982, Max 1960). With z = sqrt(d) R x / |x| and Q(z) the nearest levels, the server
decodes

    R^-1 (S Q(z)),   S = |x|^2 / <R x, Q(z)>,

whose mean over uniform rotations is x. Its error is 1 / (1 - D) - 1 of |x|^2, where D is that of the levels for a Gaussian:
pi / 2 - 1 = .571 with 1 bit, .133 with 2, .0358 with 3, .0096 with 4.

We deviate twice. R is two rounds of random signs and a Hadamard transform, not one: after one round, a vector of two
entries a > b > 0 among zeros loses b whatever the seed. And the vector is cut into blocks of a power of two, up to 65,536,
each with an S of its own; all blocks of a vector share their signs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from atoll import rng
from atoll.errors import ConfigError, TreeError
from atoll.transforms.compress import bits as packing
from atoll.transforms.compress.coded import Coder, Parts, coded
from atoll.types import Properties, Transform

Bits = Literal[1, 2, 3, 4]

TRAFFIC = {"bits": 1.001, "per": "bits"}
_LARGEST, _SMALLEST = 1 << 16, 1 << 6  # entries of a block: its transforms stay in a core's cache; its entries look Gaussian
_LEVELS = {  # of least squared error for N(0, 1): the positive ones
    1: (0.7978845608,),
    2: (0.4527800346, 1.5104176085),
    3: (0.2450941789, 0.7560052812, 1.3439092785, 2.1519457045),
    4: (0.1283950299, 0.3880482995, 0.6567591185, 0.9423404565, 1.2562311973, 1.6180463860, 2.0690172265, 2.7325895710),
}
_CELLS, _REACH = 4096, 4.0  # codes are looked up in a grid over [-4, 4], which moves a boundary by 1/1024 at most


def eden(bits: Bits = 1) -> Transform[None]:
    """A random rotation and `bits` bits an entry, right in the mean: a thirty-second of the bytes with 1 bit.

    Every 65,536 entries share a scale. A vector's end is padded by less than 64 entries.

    Raises:
        ConfigError: bits is not 1, 2, 3 or 4.

    >>> from atoll.types import Update
    >>> given = torch.sin(torch.arange(4096.0))
    >>> sent = eden(bits=4).encode(None, {}, {}, Update(0, "a", "train", {"w": given}, 1.0, {}))[0]
    >>> error = eden(bits=4).decode(sent, None).tree["w"] - given
    >>> sent.tree["eden/1=codes"].shape, round(float(error.norm() / given.norm()), 2)
    (torch.Size([2048]), 0.1)
    """
    if bits not in get_args(Bits):
        raise ConfigError(f"eden bits = {bits}: must be 1, 2, 3 or 4")

    def encode(x: Tensor, seed: int) -> Parts:
        blocks = list(_blocks(len(x)))
        codes, scale = torch.empty(sum(blocks), dtype=torch.uint8), torch.empty(len(blocks))
        signs, at = _signs(seed, max(blocks)), 0
        for nth, size in enumerate(blocks):
            block = x[at : at + size]
            block = torch.nn.functional.pad(block, (0, size - len(block)))
            scale[nth] = _encode(block, signs[:, :size], bits, codes[at : at + size])
            at += size
        return {"codes": packing.pack(codes, bits), "scale": scale, "seed": torch.tensor(seed)}

    def decode(parts: Parts, n: int) -> Tensor:
        packed, scale, seed = parts["codes"], parts["scale"], parts["seed"]
        if seed.dtype != torch.int64 or seed.dim() or not scale.is_floating_point() or 8 * packed.numel() < n * bits:
            raise TreeError(f"{packed.numel()} bytes, a {seed.dtype} seed and {scale.dtype} scales: no {n} entries of eden")
        blocks = list(_blocks(n))
        if scale.shape != (len(blocks),):
            raise TreeError(f"eden scales of {tuple(scale.shape)}: {n} entries have {len(blocks)}")
        codes, levels = packing.unpack(packed, bits, sum(blocks)), _levels(bits)
        signs, found, at = _signs(int(seed), max(blocks)), torch.empty(sum(blocks)), 0
        for size, times in zip(blocks, scale.tolist(), strict=True):
            rotated = (levels / size).index_select(0, codes[at : at + size].int())
            rotated = _hadamard(_hadamard(rotated).mul_(signs[1, :size]))
            torch.mul(rotated.mul_(signs[0, :size]), times, out=found[at : at + size])
            at += size
        return found[:n]

    return coded("eden/1", Coder(encode, decode), Properties(unbiased=True))


def _blocks(n: int) -> Iterator[int]:
    """Decreasing powers of two that together hold n entries and less than 64 more."""
    while n > 0:
        size = min(max(1 << (n - 1).bit_length(), _SMALLEST), _LARGEST)
        size = size if size - n < _SMALLEST else size // 2
        yield size
        n -= size


def _encode(x: Tensor, signs: Tensor, bits: int, codes: Tensor) -> float:
    """Write the codes of one block, uint8 (d,); its scale S."""
    peak = float(x.abs().amax())
    if peak == 0 or not math.isfinite(peak):
        codes.zero_()
        return peak * 0  # NaN stays NaN, and so does what was infinite
    x = x / peak  # so that no square over- or underflows
    squared = float(torch.dot(x, x))
    rotated = _hadamard(_hadamard(x.mul_(signs[0])).mul_(signs[1]))  # d R x
    if bits == 1:
        torch.gt(rotated, 0, out=codes.view(torch.bool))
        along = _LEVELS[1][0] * float(rotated.abs_().sum())
    else:
        cells = rotated * (_CELLS / 2 / _REACH / math.sqrt(len(x) * squared))
        torch.index_select(_grid(bits), 0, cells.add_(_CELLS / 2).clamp_(0, _CELLS - 1).int(), out=codes)
        along = float(torch.dot(rotated, _levels(bits).index_select(0, codes.int())))
    return peak * (len(x) * squared / along)


def _hadamard(x: Tensor) -> Tensor:
    """H x of a vector of 2^k entries, H the Walsh-Hadamard matrix of entries +1 and -1: H H = 2^k.

    H is a Kronecker product of matrices of 16 rows. Each matrix product does the leading four bits of the index and
    takes them to the end, so that after all of them every bit is at its place: BLAS, and no copies.
    """
    left = len(x).bit_length() - 1
    while left > 0:
        factor = _matrix(min(left, 4))
        x = x.view(len(factor), -1).t() @ factor
        left -= 4
    return x.view(-1)


@functools.cache
def _matrix(k: int) -> Tensor:
    small = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    return functools.reduce(torch.kron, [small] * k)


@functools.cache
def _levels(bits: int) -> Tensor:
    """All 2^bits levels, ascending: a code is a place among them."""
    positive = torch.tensor(_LEVELS[bits])
    return torch.cat([-positive.flip(0), positive])


@functools.cache
def _grid(bits: int) -> Tensor:
    """The code of each cell of the grid, uint8 (cells,): that of its middle."""
    levels = _levels(bits)
    middles = (torch.arange(_CELLS) + 0.5) * (2 * _REACH / _CELLS) - _REACH
    return torch.bucketize(middles, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)


def _signs(seed: int, size: int) -> Tensor:
    """+1 and -1 for both rounds, float32 (2, size)."""
    drawn = torch.randint(-(1 << 63), (1 << 63) - 1, (size // 32,), generator=rng.generator(seed, "eden"))
    return packing.unpack(drawn.view(torch.uint8), 1, 2 * size).view(2, size).float().mul_(2).sub_(1)
