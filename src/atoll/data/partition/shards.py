"""The pathological label skew of McMahan et al. 2017 (arXiv:1602.05629, section 3): sort by label, cut, deal the shards."""

from __future__ import annotations

import numpy as np
import torch

from atoll import rng
from atoll.data.partition.parts import Columns, Part, Partition, classes_of, several
from atoll.errors import ConfigError


def shards(per_client: int = 2, label: str = "y") -> Partition:
    """Each client gets `per_client` runs of the examples sorted by label, so that it sees few labels.

    With clients * per_client at least the number of labels and labels of equal size, a client sees at most
    2 * per_client labels, and `per_client` when the shards fall on the borders of labels. Shards differ by one example
    at most.

    Raises:
        ConfigError: per_client is below 1, or there are more shards than examples.

    >>> labels = torch.arange(100) % 10
    >>> [len(labels[part.rows].unique()) for part in shards(2)({"y": labels}, 5, 0)]
    [2, 2, 2, 2, 2]
    """
    if per_client < 1:
        raise ConfigError(f"per_client is {per_client}, but each client needs 1 shard or more.")

    def partition(columns: Columns, clients: int | None, seed: int) -> list[Part]:
        classes = classes_of(columns, label)
        number = several(clients, len(classes), per_client)
        order = rng.permutation(len(classes), seed, "shards", "order")  # within a label no order is left
        by_label = order[torch.from_numpy(np.argsort(classes[order.numpy()], kind="stable"))]
        pieces = by_label.tensor_split(number * per_client)
        deal = rng.permutation(len(pieces), seed, "shards", "deal").tolist()
        hands = [deal[start : start + per_client] for start in range(0, len(deal), per_client)]
        return [Part(torch.cat([pieces[piece] for piece in hand]).sort().values) for hand in hands]

    return partition
