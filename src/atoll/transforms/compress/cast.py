"""Send updates in a narrower floating-point type; the server sums them in float32."""

from __future__ import annotations

from typing import Literal

import torch

from atoll import tree
from atoll.errors import ConfigError
from atoll.types import Assignment, Properties, Transform, Tree, Update

TRAFFIC = {"bits": 16}
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def cast(dtype: Literal["bf16", "fp16"] = "bf16") -> Transform[None]:
    """Floating-point tensors become `dtype`: half the bytes of float32; other tensors stay.

    bf16 keeps the range and 8 bits of mantissa; fp16 keeps 11 bits and overflows above 65,504.

    >>> u = Update(0, "a", "train", {"w": torch.tensor([1.0])}, 1.0, {})
    >>> cast("bf16").encode(None, {}, {}, u)[0].tree["w"].dtype
    torch.bfloat16
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"cast dtype = {dtype!r}: must be bf16 or fp16")
    target = _DTYPES[dtype]

    def encode(assignment: Assignment, broadcast: Tree, memory: Tree, update: Update) -> tuple[Update, Tree]:
        narrow = tree.map(lambda x: x.to(target) if x.is_floating_point() else x, update.tree)
        return update._replace(tree=narrow), {}

    return Transform("cast", lambda w: None, lambda s: {}, encode, None, lambda s, r: (r.tree, s), Properties(linear=True))
