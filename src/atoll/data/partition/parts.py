"""What a partition is: a rule that gives each client some of the examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

from atoll.errors import ConfigError, DataError
from atoll.types import Batch

Columns: TypeAlias = "Mapping[str, Tensor | Sequence[str]]"  # of one length; a partition reads the one it needs


class Part(NamedTuple):
    """One client's part."""

    rows: Tensor  # int64 (n,), the rows that are this client's
    name: str = ""  # of a natural client (a hospital); empty: numbered
    transform: Callable[[Batch], Batch] | None = None  # what this client's examples look like (feature shift)


# (columns, clients, seed) -> one part a client. `clients` is None where the data decide how many there are.
Partition: TypeAlias = Callable[[Columns, int | None, int], list[Part]]


def column_of(columns: Columns, name: str) -> Any:
    """The column that a partition reads.

    Raises:
        ConfigError: there is no such column.
    """
    if name not in columns:
        raise ConfigError(f"the partition reads a column {name!r}, which the data do not have; there are {', '.join(columns)}.")
    return columns[name]


def count_of(columns: Columns) -> int:
    """How many examples there are."""
    return len(next(iter(columns.values())))


def classes_of(columns: Columns, name: str) -> np.ndarray[Any, Any]:
    """The labels as class numbers, (n,).

    Raises:
        ConfigError: there is no such column.
        DataError: the labels are not one whole number an example.
    """
    labels = np.asarray(column_of(columns, name))
    if labels.ndim != 1:
        raise DataError(f"the column {name!r} has shape {labels.shape}, but a partition by label needs one label an example.")
    classes, numbers = np.unique(labels, return_inverse=True)
    if labels.dtype.kind == "f" and len(classes) > max(100, len(labels) // 10):
        raise DataError(f"the column {name!r} holds measurements, not classes; use iid, quantity_skew or natural instead.")
    return numbers.reshape(-1)


def several(clients: int | None, examples: int, min_examples: int = 1) -> int:
    """The number of clients, checked against the number of examples.

    Raises:
        ConfigError: clients is None or below 1, or there are too few examples.

    >>> several(3, 10)
    3
    >>> several(20, 10)
    Traceback (most recent call last):
    atoll.errors.ConfigError: 20 clients with 1 or more examples each need 20, but there are 10; ask for fewer clients.
    """
    if clients is None or clients < 1:
        raise ConfigError(f"clients is {clients}, but this partition needs to be told a number of 1 or more.")
    if min_examples < 0:
        raise ConfigError(f"min_examples is {min_examples}, but must be 0 or more.")
    need = clients * max(1, min_examples)
    if need > examples:
        raise ConfigError(
            f"{clients} clients with {max(1, min_examples)} or more examples each need {need}, but there are {examples}; "
            "ask for fewer clients."
        )
    return clients
