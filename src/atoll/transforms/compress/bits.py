"""Codes of 1 to 4 bits laid side by side in bytes, the first code in the lowest bits of the first byte."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from atoll.errors import TreeError

_AT_ONCE = 1 << 16  # codes: a chunk and what is computed from it stay in a core's cache
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # eight codes fill one number of these; of 3 bits, three bytes


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes (n,), each below 2^bits, as uint8 (ceil(n bits / 8),).

    Eight codes at a time are one 64-bit word, whose lanes are pushed together in pairs, three times. Raises TreeError
    where the codes are not such.

    >>> pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 2).tolist()  # 0b11_10_01
    [57]
    """
    size = _size(codes.numel(), bits)
    if codes.dtype != torch.uint8 or codes.dim() != 1:
        raise TreeError(f"codes to pack are {codes.dtype} {tuple(codes.shape)}; they must be uint8 in one row")
    if len(codes) and int(codes.max()) >> bits:
        raise TreeError(f"a code of {int(codes.max())} does not fit into {bits} bits")
    packed = torch.empty(size, dtype=torch.uint8)
    for at in range(0, len(codes), _AT_ONCE):
        part = codes[at : at + _AT_ONCE]
        words = pad(part, (0, -len(part) % 8)).view(torch.int64)
        for lane in (1, 2, 4):  # codes that are side by side already
            words = words.bitwise_or(words >> lane * (8 - bits)).bitwise_and_(_lanes(2 * lane, bits))
        room = packed[at * bits // 8 : (at + _AT_ONCE) * bits // 8]
        full = words.to(_WHOLE[bits]).view(torch.uint8) if bits in _WHOLE else words.view(torch.uint8).view(-1, 8)[:, :bits]
        room.copy_(full.reshape(-1)[: len(room)])
    return packed


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """The n codes, uint8 (n,), that `pack` was given. Raises TreeError unless there are exactly as many bytes as they take.

    >>> unpack(torch.tensor([57], dtype=torch.uint8), 2, 3).tolist()
    [1, 2, 3]
    """
    size = _size(n, bits)
    if packed.dtype != torch.uint8 or packed.shape != (size,):
        raise TreeError(f"packed codes are {packed.dtype} {tuple(packed.shape)}; {n} of {bits} bits are {size} bytes of uint8")
    codes = torch.empty(n, dtype=torch.uint8)
    for at in range(0, n, _AT_ONCE):
        part = packed[at * bits // 8 : (at + _AT_ONCE) * bits // 8]
        full = pad(part, (0, -len(part) % bits))
        words = full.view(_WHOLE[bits]).long() if bits in _WHOLE else pad(full.view(-1, bits), (0, 8 - bits)).view(torch.int64)
        words = words.view(-1).bitwise_and(_lanes(8, bits))  # without the sign that a narrower number leaves
        for lane in (4, 2, 1):
            words = words.bitwise_or(words << lane * (8 - bits)).bitwise_and_(_lanes(lane, bits))
        codes[at : at + _AT_ONCE] = words.view(torch.uint8)[: n - at]
    return codes


def _size(n: int, bits: int) -> int:
    if not 1 <= bits <= 4:
        raise TreeError(f"codes of {bits} bits can't be packed; 1 to 4 can")
    return -(-n * bits // 8)


def _lanes(count: int, bits: int) -> int:
    """The 64-bit mask of codes of which `count` lie side by side at the low end of every `count` bytes."""
    return sum((1 << count * bits) - 1 << at for at in range(0, 64, 8 * count))
