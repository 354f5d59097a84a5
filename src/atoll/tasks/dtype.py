"""Which dtype a model's weights are held in, and whether this CPU gains from bfloat16."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atoll.errors import unknown

if TYPE_CHECKING:
    import torch

_NAMES = {
    "fp32": "float32",
    "float32": "float32",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp16": "float16",
    "float16": "float16",
}


def gains_from_bf16() -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on this CPU: it has instructions for them.

    Asked of the CPU and not measured, so that all processes of a run, and a resumed run, decide alike. Without such
    instructions (AVX512-BF16, AMX, Arm BF16) bfloat16 is emulated and several times slower.
    """
    import torch

    flags = torch.cpu.get_capabilities()
    return any(bool(flags.get(name)) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))


def weights_dtype(name: str, frozen: bool) -> torch.dtype:
    """The dtype to hold a model in; "auto" is bfloat16 for a frozen base where the CPU gains, else float32.

    Weights that are trained stay in float32 under "auto": a small step is lost in bfloat16's eight bits.

    Raises:
        UnknownName: no such dtype.

    >>> weights_dtype("auto", frozen=False), weights_dtype("bf16", frozen=True)
    (torch.float32, torch.bfloat16)
    """
    import torch

    if name == "auto":
        return torch.bfloat16 if frozen and gains_from_bf16() else torch.float32
    if name not in _NAMES:
        raise unknown("dtype", name, ["auto", *_NAMES])
    dtype: torch.dtype = getattr(torch, _NAMES[name])
    return dtype
