"""Which columns may be read here: a site's rule, held where tables are read, so that no other column comes into memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar

from atoll.errors import DataError

_REFUSED: ContextVar[Callable[[list[str]], Iterable[object]] | None] = ContextVar("refused columns", default=None)


@contextlib.contextmanager
def only(refused: Callable[[list[str]], Iterable[object]]) -> Iterator[None]:
    """Until the block ends, columns of which `refused` says a reason, in a sentence, are not read in this thread.

    >>> with only(lambda columns: [f"{name} may not be read" for name in columns if name == "name"]):
    ...     permitted(["age", "name"])
    Traceback (most recent call last):
    atoll.errors.DataError: name may not be read
    """
    before = _REFUSED.set(refused)
    try:
        yield
    finally:
        _REFUSED.reset(before)


def permitted(columns: Iterable[object]) -> None:
    """Raise DataError where one of the columns may not be read; to be called before a row is."""
    refused = _REFUSED.get()
    reasons = [str(each) for each in refused([str(column) for column in columns])] if refused is not None else []
    if reasons:
        raise DataError("; ".join(reasons[:3]))
