"""Which entries of a vector are kept, as bytes: a compressed bitmap, or the gaps between them in a Rice code.

Rice code (Golomb 1966; Rice and Plaunt 1971): of each gap the low bits as they are and the rest in unary, which is 0.4 %
above the entropy of positions that are independent; where they cluster the bitmap is smaller.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from atoll.errors import TreeError

_BITMAP, _GAPS = 0, 1
Bytes = NDArray[np.uint8]
Whole = NDArray[np.int64]


def write(at: Tensor, n: int) -> Tensor:
    """Positions (k,), strictly increasing and below n, as uint8 bytes: the shorter form, after a byte that says which.

    >>> write(torch.tensor([3, 70]), 100).tolist(), read(write(torch.tensor([3, 70]), 100), 2, 100).tolist()
    ([1, 5, 128, 192, 0, 0, 0, 144], [3, 70])
    """
    positions: Whole = at.numpy()
    gaps = _gaps(positions, n)
    if not _clustered(positions, n):
        return _bytes(gaps)
    mask = np.zeros(n, dtype=bool)
    mask[positions] = True
    bitmap = zstandard.ZstdCompressor(level=1).compress(np.packbits(mask).tobytes())
    return _bytes(gaps if len(gaps) <= len(bitmap) else bytes([_BITMAP]) + bitmap)


def _clustered(positions: Whole, n: int) -> bool:
    """They fall into clearly fewer bytes of a bitmap than independent ones: only then can one be the shorter form."""
    bytes_hit = 1 + int(np.count_nonzero(np.diff(positions >> 3)))
    return bytes_hit < 0.95 * n / 8 * (1 - (1 - len(positions) / n) ** 8)


def read(data: Tensor, k: int, n: int) -> Tensor:
    """The k positions that `write` was given, int64 (k,).

    Raises:
        TreeError: not bytes, or not k strictly increasing positions below n.
    """
    if data.dtype != torch.uint8 or data.dim() != 1 or len(data) < 1 or not 0 <= k <= n:
        raise TreeError(f"{k} positions of {n} entries are {data.dtype} {tuple(data.shape)}; they should be bytes")
    form, rest = int(data[0]), data.numpy()[1:]
    if form not in (_BITMAP, _GAPS):
        raise TreeError(f"positions of the form {form}: there are {_BITMAP} and {_GAPS}; they are damaged or of a newer Atoll")
    found = _of_bitmap(rest, n) if form == _BITMAP else _of_gaps(rest, k, n)
    if len(found) != k or (k and found[-1] >= n):
        raise TreeError(f"an encoded update has {len(found)} positions for {k} values of {n} entries")
    return torch.from_numpy(found)


def _gaps(positions: Whole, n: int) -> bytes:
    """form, low, the `low` low bits of each gap as bit planes, the rest of each in unary: as many zeros, and a one."""
    low = int(math.log2(max(n * math.log(2) / max(len(positions), 1), 1)))
    gaps = np.diff(positions, prepend=-1) - 1
    planes = gaps >> np.arange(low)[:, None] & 1
    ends = np.cumsum((gaps >> low) + 1)
    unary = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    unary[ends - 1] = 1
    return bytes([_GAPS, low]) + np.packbits(planes.astype(np.uint8), axis=1).tobytes() + np.packbits(unary).tobytes()


def _of_gaps(data: Bytes, k: int, n: int) -> Whole:
    low = int(data[0]) if len(data) else 64
    size = low * -(-k // 8)
    if 1 << low > n or len(data) < 1 + size:
        raise TreeError(f"{k} positions of {n} entries do not fit into {len(data)} bytes with {low} low bits of each gap")
    ends = np.flatnonzero(np.unpackbits(data[1 + size :]))
    high = np.diff(ends, prepend=-1) - 1
    if len(high) != k or int(high.sum()) > n >> low:  # before the shift, so that nothing overflows
        raise TreeError(f"an encoded update has {len(high)} gaps of {k}, or gaps beyond its {n} entries")
    gaps = high << low
    planes = np.unpackbits(data[1 : 1 + size].reshape(low, -(-k // 8)), axis=1, count=k)
    for bit in range(low):
        gaps |= planes[bit].astype(np.int64) << bit
    return np.cumsum(gaps + 1) - 1


def _of_bitmap(data: Bytes, n: int) -> Whole:
    size, packed = -(-n // 8), data.tobytes()
    try:
        said = zstandard.frame_content_size(packed)
        if said != size:
            raise TreeError(f"a bitmap of {n} entries takes {size} bytes; an encoded update announces {said}")
        plain = zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)
    except zstandard.ZstdError as error:
        raise TreeError(f"a bitmap of positions does not unpack ({error}); it is damaged") from None
    return np.flatnonzero(np.unpackbits(np.frombuffer(plain, dtype=np.uint8)))


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
