"""Numbers of each client that was seen, as a state that a checkpoint keeps compactly: names beside one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from atoll.types import ClientId

if TYPE_CHECKING:
    from torch import Tensor


class Ledger(NamedTuple):
    """One row a client, in the order in which they were first seen."""

    clients: tuple[ClientId, ...] = ()
    values: Tensor | None = None  # float64, (clients, columns)


def read(ledger: Ledger) -> dict[ClientId, tuple[float, ...]]:
    """The rows by client.

    >>> read(written({"a": (1.0, 2.0)}))
    {'a': (1.0, 2.0)}
    """
    rows = [] if ledger.values is None else ledger.values.tolist()
    return {client: tuple(row) for client, row in zip(ledger.clients, rows, strict=True)}


def written(rows: Mapping[ClientId, Sequence[float]]) -> Ledger:
    """A ledger of these rows, all of one length.

    >>> written({"a": (1.0, 2.0)}).values.shape
    torch.Size([1, 2])
    """
    import torch

    return Ledger(tuple(rows), torch.tensor([list(row) for row in rows.values()], dtype=torch.float64)) if rows else Ledger()
