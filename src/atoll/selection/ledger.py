"""Numbers of each client that was seen, as a state that a checkpoint keeps compactly: names beside one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
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
    if ledger.values is None:
        return {}
    return dict(zip(ledger.clients, zip(*ledger.values.T.tolist(), strict=True), strict=True))


def written(rows: Mapping[ClientId, Sequence[float]]) -> Ledger:
    """A ledger of these rows, all of one length.

    >>> written({"a": (1.0, 2.0)}).values.shape
    torch.Size([1, 2])
    """
    import torch

    if not rows:
        return Ledger()
    flat = list(chain.from_iterable(rows.values()))  # of nested lists a tensor is made ten times slower
    return Ledger(tuple(rows), torch.tensor(flat, dtype=torch.float64).view(len(rows), -1))
