"""Events to TensorBoard: one chart a number, the round on its axis."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from atoll.errors import missing_extra
from atoll.types import Event

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """A sink that writes a TensorBoard log. It owns a file: close it.

    Numbers of the federation are charts "work/name"; with `clients=True` those of each client are charts
    "work/name/client" too, which is much for many clients. A run that goes on from a checkpoint overwrites what an
    earlier process drew of the rounds that come again.

    >>> import tempfile
    >>> board = TensorBoard(tempfile.mkdtemp())
    >>> board.emit(Event("reduced", 0, "train", metrics={"loss": 0.5}))
    >>> board.close()
    """

    def __init__(self, folder: str | Path, *, clients: bool = False) -> None:
        """Raises MissingExtra without the package tensorboard."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise missing_extra("tensorboard", "tensorboard", "TensorBoard logs") from None
        self._open = partial(SummaryWriter, str(folder))
        self._writer: SummaryWriter | None = None
        self._clients = clients

    def emit(self, event: Event) -> None:
        """Draw the event's numbers; its text, if it has one, goes to the page of texts."""
        if self._writer is None:  # the first event says from which round on an earlier process's drawing is void
            self._writer = self._open(purge_step=event.round)
        if event.client is None or self._clients:
            path = "/".join(part for part in (event.work, "{}", event.client) if part)
            for name, value in event.metrics.items():
                self._writer.add_scalar(path.format(name), value, event.round)
        if event.text:
            told = f"{event.client}: {event.text}" if event.client else event.text
            self._writer.add_text(event.kind, told, event.round)
        if event.kind == "round":
            self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._writer is not None:
            self._writer.close()
