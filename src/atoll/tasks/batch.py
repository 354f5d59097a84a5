"""The parts of a batch by name, with an error that says what came instead."""

from __future__ import annotations

from torch import Tensor

from atoll.errors import DataError
from atoll.types import Batch


def part(batch: Batch, name: str) -> Tensor:
    """`batch[name]`.

    Raises:
        DataError: the batch has no such part.

    >>> part({"x": 1, "y": 2}, "input_ids")
    Traceback (most recent call last):
    atoll.errors.DataError: the task reads 'input_ids', but the data set's batches hold x, y: take a task or a data set that fits.
    """
    try:
        return batch[name]
    except KeyError:
        held = ", ".join(sorted(batch)) or "nothing"
        raise DataError(
            f"the task reads {name!r}, but the data set's batches hold {held}: take a task or a data set that fits."
        ) from None
