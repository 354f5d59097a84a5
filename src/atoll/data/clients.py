"""From examples and a partition to a federated data set: each client's train and test split, and its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from atoll import rng
from atoll.data.examples import Tensors
from atoll.data.partition.parts import Part, Partition
from atoll.data.spans import Spans
from atoll.errors import ConfigError
from atoll.types import ClientId, Dataset, Examples


def held_out(count: int, fraction: float, run_seed: int, *place: object) -> tuple[Tensor, Tensor]:
    """A random split of range(count) in (train, test), each int64 in ascending order.

    The test split has round(fraction * count) examples, at least one where there are two or more, and never all.

    Raises:
        ConfigError: fraction is outside [0, 1).

    >>> train, test = held_out(10, 0.2, 0, "client")
    >>> len(train), len(test), sorted(train.tolist() + test.tolist()) == list(range(10))
    (8, 2, True)
    """
    size = test_size(count, fraction)
    order = rng.permutation(count, run_seed, "held out", *place)
    return order[size:].sort().values, order[:size].sort().values


def test_size(count: int, fraction: float) -> int:
    """How many of `count` examples are held out: round(fraction * count), at least one of two or more, never all.

    Raises:
        ConfigError: fraction is outside [0, 1).

    >>> test_size(10, 0.25), test_size(2, 0.1), test_size(1, 0.1), test_size(10, 0.0)
    (2, 1, 0, 0)
    """
    if not 0 <= fraction < 1:
        raise ConfigError(
            f"test_fraction is {fraction}, but must be at least 0 and below 1: it is the share held out for testing."
        )
    return 0 if fraction == 0 else min(max(round(fraction * count), 1), max(count - 1, 0))


test_size.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test where it is imported


def share(
    name: str,
    columns: Mapping[str, Tensor],
    partition: Partition,
    *,
    clients: int | None,
    seed: int,
    test: Examples | None = None,
    test_fraction: float = 0.1,
    server_fraction: float = 0.0,
    about: Mapping[str, Any] | None = None,
    by: Mapping[str, Sequence[str]] | None = None,
) -> Dataset:
    """A federated data set: `columns` divided by `partition`, each client's part split again in train and test.

    With `server_fraction` the server holds out that share of each part, as it was before any feature shift; else it
    has `test`. `by` holds columns that only the partition reads, such as the name of a hospital.

    Raises:
        ConfigError: the partition cannot be made, or test_fraction is outside [0, 1).
        DataError: columns differ in length.

    >>> import torch
    >>> from atoll.data.partition.iid import iid
    >>> data = share("toy", {"x": torch.eye(6), "y": torch.arange(6)}, iid(), clients=2, seed=0)
    >>> {client: len(splits["train"]) for client, splits in data.clients.items()}
    {'client-0': 2, 'client-1': 2}
    """
    whole = Tensors(columns)
    parts = partition({**columns, **(by or {})}, clients, seed)
    width = len(str(len(parts) - 1))
    kept: dict[ClientId, Part] = {}
    reserved = []
    for number, part in enumerate(parts):
        client = ClientId(part.name or f"client-{number:0{width}d}")
        keep, reserve = held_out(len(part.rows), server_fraction, seed, "server", client)
        reserved.append(part.rows[reserve])
        kept[client] = part._replace(rows=part.rows[keep])
    if server_fraction:
        test = whole.subset(torch.cat(reserved))
    return Dataset(name, _holdings(whole, kept, test_fraction, seed), test, about or {})


def _holdings(
    whole: Tensors, parts: Mapping[ClientId, Part], test_fraction: float, seed: int
) -> Mapping[ClientId, Mapping[str, Examples]]:
    """Spans of one index; or where each client sees its examples in its own way, tensors of its own."""
    splits = {client: held_out(len(part.rows), test_fraction, seed, client) for client, part in parts.items()}
    if all(part.transform is None for part in parts.values()):
        rows = [part.rows[split] for client, part in parts.items() for split in splits[client]]
        bounds = torch.tensor([0, *(len(each) for each in rows)], dtype=torch.int64).cumsum(0)
        numbers = {client: number for number, client in enumerate(parts)}
        return Spans(numbers, ("train", "test"), bounds, whole.subset(torch.cat(rows)))
    holdings: dict[ClientId, Mapping[str, Examples]] = {}
    for client, part in parts.items():
        own, (train, test) = whole.subset(part.rows), splits[client]
        own = own if part.transform is None else own.mapped(part.transform)
        holdings[client] = {"train": own.subset(train), "test": own.subset(test)}
    return holdings
