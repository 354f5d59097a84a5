"""Top-k of each chunk of a vector, as SparseLoCo sends outer gradients (Sarfi et al. 2025, arXiv:2508.15706).

Every part of the model is heard of in every round, and choosing is a sort of small rows. The paper's chunks are 64 x 64
blocks of a matrix; here they are `chunk` entries in a row, of all tensors laid end to end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atoll.errors import ConfigError
from atoll.transforms.compress.coded import coded
from atoll.transforms.compress.top_k import largest, sparse
from atoll.types import Transform

TRAFFIC = {"bits": 0.00967, "per": "keep", "beside": 0.00186}  # over 4,096: a float32, and 7.6 bits for its position


def chunk_top_k(chunk: int = 4096, keep: int = 64) -> Transform[None]:
    """The `keep` entries largest in magnitude of every `chunk` entries, as float32 values and their positions.

    A last chunk that is shorter keeps as many, or all that it has.

    Raises:
        ConfigError: keep is below 1 or above chunk.

    >>> from atoll.types import Update
    >>> update = Update(0, "a", "train", {"w": torch.tensor([9.0, 8.0, 0.1, -0.2, 0.3])}, 1.0, {})
    >>> sent = chunk_top_k(2, 1).encode(None, {}, {}, update)[0]
    >>> chunk_top_k(2, 1).decode(sent, None).tree["w"].tolist()
    [9.0, 0.0, 0.0, -0.20000000298023224, 0.30000001192092896]
    """
    if not 1 <= keep <= chunk:
        raise ConfigError(f"chunk_top_k keep = {keep}: must be 1 to {chunk}, the entries of a chunk")

    return coded("chunk_top_k/1", sparse(lambda x, seed: chosen(x, chunk, keep)))


def chosen(x: Tensor, chunk: int, keep: int) -> Tensor:
    """The positions of the `keep` entries of each chunk of x (n,) that are largest in magnitude, int64, increasing.

    >>> chosen(torch.tensor([9.0, 8.0, 0.1, -0.2]), 2, 1).tolist()
    [0, 3]
    """
    whole = len(x) // chunk * chunk
    rows = x[:whole].view(-1, chunk).abs()
    at = rows.topk(keep, dim=1, sorted=False).indices.sort(1).values.add_(torch.arange(0, whole, chunk).unsqueeze(1))
    return torch.cat([at.view(-1), largest(x[whole:], keep) + whole])
