"""Small decoder-only transformer, pre-norm (Radford et al. 2019), for characters and for tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atoll.errors import ConfigError
from atoll.rng import seeded


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).reshape(n, length, width))
        y: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return y


class _Transformer(nn.Module):
    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocabulary, bias=False)
        for table in (self.token, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.output(self.norm(x))
        return logits


def transformer(
    vocabulary: int = 128, width: int = 64, layers: int = 2, heads: int = 4, context: int = 128, seed: int = 0
) -> nn.Module:
    """Decoder-only transformer: tokens (n, length <= context), int64 -> logits (n, length, vocabulary).

    Raises:
        ConfigError: `width` is no multiple of `heads`.

    >>> transformer(vocabulary=96)(torch.zeros(2, 16, dtype=torch.int64)).shape
    torch.Size([2, 16, 96])
    """
    if width % heads:
        raise ConfigError(f"width {width} is no multiple of {heads} heads: each head takes an equal part of the width.")
    with seeded(seed):
        return _Transformer(vocabulary, width, layers, heads, context)
