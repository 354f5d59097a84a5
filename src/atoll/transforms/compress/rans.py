"""Integers as a stream of range asymmetric numeral systems (Duda, arXiv:1311.2540), each chunk with its own histogram.

A chunk's model is its radius r and one byte for each of -r..r and for "larger than r": -12 log2 of its share, rounded,
which costs 0.0003 bits an entry; 255 stands for none at all. Larger integers follow by themselves.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from constriction import stream
from numpy.typing import NDArray
from torch import Tensor

from atoll.errors import TreeError

CHUNK = 1 << 16  # entries to a histogram: longer hides what differs between layers, shorter spends more on histograms
FURTHEST = 1023  # the largest integer that a histogram may hold
_LARGE_BYTES = 5  # what an integer outside a histogram costs: itself, and its mark in the stream
_RADIUS = struct.Struct("<H")
_UNITS, _NONE = 12, 255  # of a share's logarithm to a bit
_WEIGHTS = np.append(np.round(2.0 ** (24 - np.arange(_NONE) / _UNITS)), 0.0)  # integers, so that no platform differs


def packed(n: int, chunk_of: Callable[[slice], Tensor]) -> dict[str, Tensor]:
    """The parts of n integers, of which `chunk_of` gives any slice as int32: `words` (int32), `large` (int32; left out where
    there is none) and `model` (uint8).

    >>> parts = packed(4, lambda at: torch.tensor([0, 1, 0, 2000], dtype=torch.int32)[at])
    >>> parts["large"].tolist(), next(unpacked(parts, 4))[1].tolist()
    ([2000], [0, 1, 0, 2000])
    """
    coder, models, larges = stream.stack.AnsCoder(), [], []
    for at in reversed(range(0, n, CHUNK)):  # a stack: what is pushed last is popped first
        codes = chunk_of(slice(at, min(at + CHUNK, n)))
        furthest = max(int(codes.max()), -int(codes.min()))
        reach = min(furthest, FURTHEST)
        symbols = codes + reach
        radius, model = _model(symbols if furthest == reach else symbols.clamp(0, 2 * reach), reach)
        if furthest > radius:
            outside = codes.abs() > radius
            larges.append(codes[outside])
            symbols = (codes + radius).masked_fill_(outside, 2 * radius + 1)
        coder.encode_reverse(symbols.numpy(), _categorical(model))
        models.append(_RADIUS.pack(radius) + model.tobytes())
    return {
        "words": torch.from_numpy(coder.get_compressed().view(np.int32)),
        **({"large": torch.cat(larges[::-1])} if larges else {}),
        "model": torch.frombuffer(bytearray(b"".join(models[::-1])), dtype=torch.uint8),
    }


def unpacked(parts: Mapping[str, Tensor], n: int) -> Iterator[tuple[int, Tensor]]:
    """(first entry, int32 integers) of each chunk in turn; a stream that is not `packed` yields as many, or ends in an error.

    Raises:
        TreeError: parts of other dtypes; histograms or large integers too few; anything left over.
    """
    words, large, model = parts["words"], parts.get("large", torch.empty(0, dtype=torch.int32)), parts["model"]
    kinds = [(part.dtype, part.dim()) for part in (words, large, model)]
    if kinds != [(torch.int32, 1), (torch.int32, 1), (torch.uint8, 1)]:
        raise TreeError("a stream's words and large integers are int32, its histograms uint8, each in one row")
    if len(words) and int(words[-1]) == 0:
        raise TreeError("a stream's words end in zero, as none do")
    models, coder, used = _read(model.numpy().tobytes(), n), stream.stack.AnsCoder(words.numpy().view(np.uint32)), 0
    for at, own in zip(range(0, n, CHUNK), models, strict=True):
        radius = len(own) // 2 - 1
        codes = torch.from_numpy(coder.decode(_categorical(own), min(CHUNK, n - at))).sub_(radius)
        if int(codes.max()) > radius:
            outside = (codes > radius).nonzero()[:, 0]
            if used + len(outside) > len(large):
                raise TreeError(f"a stream has {len(large)} large integers and marks more")
            codes[outside] = large[used : used + len(outside)]
            used += len(outside)
        yield at, codes
    if used != len(large) or not coder.is_empty():
        raise TreeError("a stream has words or large integers left over after its last entry")


def _model(symbols: Tensor, furthest: int) -> tuple[int, NDArray[np.uint8]]:
    """The radius that costs least, and the bytes of the shares within it and outside; `symbols`: codes + furthest."""
    counts = torch.bincount(symbols, minlength=2 * furthest + 1).numpy()
    sizes = counts[furthest:] + counts[furthest::-1]  # by magnitude; those of zero twice, which no radius leaves out
    outside = np.append(sizes[:0:-1].cumsum()[::-1], 0)  # of magnitude above r, for r in 0..furthest
    radius = int((2 * np.arange(furthest + 1) + _LARGE_BYTES * outside).argmin())
    inside = counts[furthest - radius : furthest + radius + 1]
    with np.errstate(divide="ignore"):
        bits = -np.log2(np.append(inside, outside[radius]) / len(symbols))
    return radius, np.minimum(np.round(_UNITS * bits), _NONE).astype(np.uint8)


def _categorical(model: NDArray[np.uint8]) -> stream.model.Categorical:
    return stream.model.Categorical(_WEIGHTS[model], perfect=False)


def _read(data: bytes, n: int) -> list[NDArray[np.uint8]]:
    """The histograms of all chunks of n entries."""
    found: list[NDArray[np.uint8]] = []
    at = 0
    for _ in range(0, n, CHUNK):
        if at + _RADIUS.size > len(data):
            raise TreeError(f"a stream of {n} entries has histograms for only {len(found) * CHUNK}")
        radius = _RADIUS.unpack_from(data, at)[0]
        ends = at + _RADIUS.size + 2 * radius + 2
        if radius > FURTHEST or ends > len(data):
            raise TreeError(f"a stream's histogram has a radius of {radius}, above {FURTHEST} or beyond its bytes")
        found.append(np.frombuffer(data, np.uint8, 2 * radius + 2, at + _RADIUS.size))
        if int(found[-1].min()) == _NONE:
            raise TreeError("a stream's histogram gives every integer a share of nothing")
        at = ends
    if at != len(data):
        raise TreeError(f"a stream of {n} entries has {len(data) - at} bytes of histograms too many")
    return found
