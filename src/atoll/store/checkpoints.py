"""The last checkpoints of a run: the newest to go on from, the one before it in case the newest is damaged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from atoll.errors import StoreError
from atoll.store import blob, files, state

_SUFFIX = ".safetensors"
KEEP = 2


class Checkpoint(NamedTuple):
    """A checkpoint as it was read."""

    round: int
    state: Any
    extra: Mapping[str, Any]
    passed_over: tuple[str, ...]  # what was wrong with each newer one


def save(folder: Path, round: int, value: object, extra: Mapping[str, Any]) -> int:
    """Write the checkpoint of a round and remove all but the last two; return its size in bytes."""
    files.make_folder(folder)
    size = state.save(value, folder / f"{round:08d}{_SUFFIX}", extra=extra, durable=True)
    for old in _files(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    files.sweep(folder)
    return size


def latest(folder: Path, like: object) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None where none was written.

    Raises StoreError where all are damaged, or where it is of another federation than `like`; VersionError where
    a newer Atoll wrote it.
    """
    passed_over: list[str] = []
    for file in reversed(_files(folder)):
        try:
            return Checkpoint(int(file.stem), state.load(like, file), state.read_extra(file), tuple(passed_over))
        except blob.Corrupt as error:
            passed_over.append(str(error))
    if passed_over:
        raise StoreError(f"no checkpoint in {folder} is whole ({'; '.join(passed_over)}); start the run anew")
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"[0-9]*{_SUFFIX}"))
