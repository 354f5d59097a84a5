"""The partition without skew: examples are dealt at random in equal parts (McMahan et al. 2017, section 3)."""

from __future__ import annotations

from atoll import rng
from atoll.data.partition.parts import Columns, Part, Partition, count_of, several


def iid() -> Partition:
    """Equal random parts: sizes differ by one at most.

    Raises:
        ConfigError: there are more clients than examples.

    >>> import torch
    >>> [len(part.rows) for part in iid()({"y": torch.zeros(7)}, 3, 0)]
    [3, 2, 2]
    """

    def partition(columns: Columns, clients: int | None, seed: int) -> list[Part]:
        count = count_of(columns)
        order = rng.permutation(count, seed, "iid")
        return [Part(index.sort().values) for index in order.tensor_split(several(clients, count))]

    return partition
