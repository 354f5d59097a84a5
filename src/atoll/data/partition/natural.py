"""The partition that the data bring: one client a hospital, a speaker, a station."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from atoll.data.partition.parts import Columns, Part, Partition, column_of
from atoll.errors import ConfigError, unknown


def natural(by: str, min_examples: int = 1, names: Sequence[str] | None = None) -> Partition:
    """One client for each value of the column `by` with `min_examples` or more, in the order of their names.

    Asked for n clients it takes the n that hold most (ties by name); `names` takes just those instead. Examples of
    other values are left out.

    Raises:
        ConfigError: there is no such column, or there are fewer such clients than asked.
        UnknownName: `names` has one that is not in the column.

    >>> hospitals = ["A", "B", "A", "C", "A", "B"]
    >>> [(part.name, part.rows.tolist()) for part in natural("at")({"at": hospitals}, 2, 0)]
    [('A', [0, 2, 4]), ('B', [1, 5])]
    """

    def partition(columns: Columns, clients: int | None, seed: int) -> list[Part]:
        values = np.asarray(column_of(columns, by)).astype(str)
        found, owner = np.unique(values, return_inverse=True)
        rows = dict(
            zip(found.tolist(), np.split(np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner))[:-1]), strict=True)
        )
        chosen = _chosen({name: len(index) for name, index in rows.items()}, by, clients, min_examples, names)
        return [Part(torch.from_numpy(rows[name]), name) for name in chosen]

    return partition


def _chosen(sizes: dict[str, int], by: str, clients: int | None, min_examples: int, names: Sequence[str] | None) -> list[str]:
    if names is not None:
        for name in names:
            if name not in sizes:
                raise unknown(f"client of the column {by!r}", name, sizes)
        if clients is not None and clients != len(names):
            raise ConfigError(f"clients is {clients}, but {len(names)} are named; leave one of the two out.")
        return list(names)
    enough = [name for name, size in sizes.items() if size >= min_examples]
    if clients is None:
        if not enough:
            raise ConfigError(f"no value of {by!r} has {min_examples} or more examples; the largest has {max(sizes.values())}.")
        return sorted(enough)
    if clients < 1 or clients > len(enough):
        raise ConfigError(
            f"clients is {clients}, but the column {by!r} has {len(enough)} values with {min_examples} or more examples; "
            f"ask for 1 to {len(enough)}."
        )
    return sorted(sorted(enough, key=lambda name: (-sizes[name], name))[:clients])
