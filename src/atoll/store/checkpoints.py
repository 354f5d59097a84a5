"""The last checkpoints of a run: the newest to go on from, the one before it in case the newest is damaged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from atoll.errors import StoreError
from atoll.store import blob, state
from atoll.store.places import Blobs

FOLDER = "checkpoints"
KEEP = 2
_NAME = re.compile(rf"{FOLDER}/(\d+)\.safetensors")


class Checkpoint(NamedTuple):
    """A checkpoint as it was read."""

    round: int
    state: Any
    extra: Mapping[str, Any]
    passed_over: tuple[str, ...]  # what was wrong with each newer one


def save(blobs: Blobs, round: int, value: object, extra: Mapping[str, Any]) -> int:
    """Write the checkpoint of a round and remove all but the last two; return its size in bytes."""
    size = state.save(value, blobs.at(f"{FOLDER}/{round:08d}.safetensors"), extra=extra, durable=True)
    for _, old in sorted(_names(blobs).items())[:-KEEP]:
        blobs.delete(old)
    return size


def latest(blobs: Blobs, like: object) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None where none was written.

    Raises StoreError where all are damaged, where a key is missing, or where it is of another federation than `like`;
    VersionError where a newer Atoll wrote it.
    """
    passed_over: list[str] = []
    for round, name in sorted(_names(blobs).items(), reverse=True):
        place = blobs.at(name)
        try:
            return Checkpoint(round, state.load(like, place), state.read_extra(place), tuple(passed_over))
        except blob.Corrupt as error:
            passed_over.append(str(error))
    if passed_over:
        raise StoreError(f"no checkpoint in {blobs} is whole ({'; '.join(passed_over)}); start the run anew")
    return None


def _names(blobs: Blobs) -> dict[int, str]:
    return {int(found[1]): name for name in blobs.names(FOLDER) if (found := _NAME.fullmatch(name))}
