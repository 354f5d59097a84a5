"""The matrix products of one training step, counted from a model's layer shapes. Nothing is measured here.

A product (m x k) (k x n) is 2 m k n FLOPs. A step makes it once forward, once for the gradient of its left side (the
activations) and once for that of its right side (the weights): 3 x forward, less what nobody asks for, which is the
gradient of the data, of a frozen base's weights, and of all that lies below the first adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Product(NamedTuple):
    """`times` products (m x k) (k x n), each of them `stack` at once, and which gradients a step computes of it."""

    what: str
    m: int
    k: int
    n: int
    left: bool = True
    right: bool = True
    stack: int = 1
    times: int = 1

    @property
    def forward(self) -> int:
        """FLOPs of the forward product."""
        return 2 * self.m * self.k * self.n * self.stack * self.times

    @property
    def step(self) -> int:
        """FLOPs of the forward product and of the gradients that are computed.

        >>> Product("dense", 10, 784, 200, left=False).step
        6272000
        """
        return self.forward * (1 + self.left + self.right)


def step_flops(products: Sequence[Product]) -> int:
    return sum(p.step for p in products)


def three_forward_flops(products: Sequence[Product]) -> int:
    """The usual estimate, 3 x forward: above `step_flops` where a gradient is not needed."""
    return 3 * sum(p.forward for p in products)


def of_mlp(batch: int = 10, widths: Sequence[int] = (784, 200, 200, 10)) -> list[Product]:
    """`mlp()`: one product a layer.

    >>> step_flops(of_mlp()) == 2 * 10 * (2 * 784 * 200 + 3 * 200 * 200 + 3 * 200 * 10)
    True
    """
    return [Product(f"dense {k}-{n}", batch, k, n, left=bool(i)) for i, (k, n) in enumerate(pairwise(widths))]


def of_cnn(batch: int = 10, size: int = 28, filters: Sequence[int] = (32, 64), hidden: int = 512) -> list[Product]:
    """`cnn()`: a 5 x 5 convolution is a product of (batch x pixels) rows, 25 x channels deep; each is pooled by 2."""
    found, channels = list[Product](), 1
    for i, count in enumerate(filters):
        found.append(Product(f"conv {channels}-{count}", batch * size * size, 25 * channels, count, left=bool(i)))
        channels, size = count, size // 2
    inner = channels * size * size
    return [*found, Product(f"dense {inner}-{hidden}", batch, inner, hidden), Product(f"dense {hidden}-10", batch, hidden, 10)]


def of_transformer(
    batch: int, length: int, vocabulary: int = 128, width: int = 64, layers: int = 2, heads: int = 4
) -> list[Product]:
    """`transformer()`: queries, keys and values in one product, the mix, two of the block's MLP, attention in full squares."""
    rows, head = batch * length, width // heads
    return [
        Product("queries, keys, values", rows, width, 3 * width, times=layers),
        Product("scores", length, head, length, stack=batch * heads, times=layers),
        Product("values read", length, length, head, stack=batch * heads, times=layers),
        Product("mix", rows, width, width, times=layers),
        Product("up", rows, width, 4 * width, times=layers),
        Product("down", rows, 4 * width, width, times=layers),
        Product("output", rows, width, vocabulary),
    ]


class Llama(NamedTuple):
    """The shapes of a Llama; the defaults are SmolLM2-135M's."""

    vocabulary: int = 49152
    width: int = 576
    inner: int = 1536
    layers: int = 30
    heads: int = 9
    key_heads: int = 3


def of_lora(batch: int, length: int, rank: int, shape: Llama = Llama()) -> list[Product]:  # noqa: B008
    """A frozen Llama with LoRA on queries and values: no weight gradient but the adapters', and none below the first adapter.

    In the first layer nothing needs the gradient of the embeddings, nor that of the keys.
    """
    rows, head, width = batch * length, shape.width // shape.heads, shape.width
    wide, narrow = shape.heads * head, shape.key_heads * head
    found: list[Product] = []
    for times, below in ((1, False), (shape.layers - 1, True)):  # the first layer, and the others
        found += [
            Product("queries", rows, width, wide, left=below, right=False, times=times),
            Product("keys and values", rows, width, narrow, left=below, right=False, times=2 * times),
            Product("adapters, A", rows, width, rank, left=below, times=2 * times),
            Product("adapter of queries, B", rows, rank, wide, times=times),
            Product("adapter of values, B", rows, rank, narrow, times=times),
            Product("scores", length, head, length, right=below, stack=batch * shape.heads, times=times),
            Product("values read", length, length, head, stack=batch * shape.heads, times=times),
            Product("mix", rows, wide, width, right=False, times=times),
            Product("gate and up", rows, width, shape.inner, right=False, times=2 * times),
            Product("down", rows, shape.inner, width, right=False, times=times),
        ]
    return [*found, Product("output", rows, width, shape.vocabulary, right=False)]
