"""Several sinks as one; apart from the database's, so that a run without a store imports no database."""

from __future__ import annotations

from atoll.interfaces import Sink
from atoll.types import Event


class Several:
    """Every event to every sink, in their order.

    >>> class Show:
    ...     def emit(self, event):
    ...         print(event.kind)
    >>> Several(Show(), Show()).emit(Event("round", 0))
    round
    round
    """

    def __init__(self, *sinks: Sink) -> None:
        self.sinks = sinks

    def emit(self, event: Event) -> None:
        """Hand the event on."""
        for sink in self.sinks:
            sink.emit(event)
