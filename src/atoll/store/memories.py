"""Client memory in two phases: what a client proposes with an update counts only once the update is safe.

A proposal is a file beside the committed one, and a commit is a rename, so that a kill leaves either the old memory
or the new. `recover` settles what a kill left open: a proposal whose update is in the journal is committed, any other
is dropped, and the client computes it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from atoll.errors import StoreError
from atoll.store import files, state
from atoll.store.blob import Corrupt
from atoll.store.places import Lay, Place, plain
from atoll.types import Answer, ClientId, Tree, Update

_COMMITTED, _PENDING = "committed", ".pending"


class FileMemories:
    """Client memory in a folder: at most one committed file a client, and none for a client without memory.

    `lay` may seal the files (`atoll.store.sealed.Seal`): a file is sealed for its client, whether or not it is committed.

    >>> import tempfile, torch
    >>> memories = FileMemories(tempfile.mkdtemp())
    >>> memories.propose("north", 0, "train", {"c": torch.ones(1)})
    >>> memories.get("north")
    {}
    >>> memories.commit("north", 0, "train")
    >>> memories.get("north")
    {'c': tensor([1.])}
    """

    def __init__(self, folder: Path | str, *, lay: Lay = plain) -> None:
        self.folder = Path(folder)
        self._lay = lay

    def get(self, client: ClientId) -> Tree:
        """The committed memory; {} where there is none. The caller may change it: it is a copy of its own."""
        file = self._place(client) / _COMMITTED
        if not file.exists():
            return {}
        tree: Tree = state.load(None, self._at(file))
        return tree

    def propose(self, client: ClientId, round: int, work: str, memory: Tree) -> None:
        """Write what the client wants to remember. Raises StoreError where the folder can't be written or is full."""
        pending = self._pending(client, round, work)
        if not memory and not pending.parent.exists():
            return  # most algorithms remember nothing, and should cost nothing
        files.make_folder(pending.parent)
        state.save(memory, self._at(pending), extra={"client": client, "round": round, "work": work, "empty": not memory})

    def commit(self, client: ClientId, round: int, work: str) -> None:
        """What was proposed with that update is the client's memory from now on; without a proposal nothing changes."""
        pending = self._pending(client, round, work)
        if not pending.exists():
            return
        committed = pending.parent / _COMMITTED
        try:
            told = state.read_extra(self._at(pending))
            if (told["client"], told["round"], told["work"]) != (client, round, work):
                raise Corrupt(f"{pending} is what {told['client']!r} proposed with another update; start the run anew")
            if told["empty"]:
                committed.unlink(missing_ok=True)  # this one first: killed in between, the commit is done again
                pending.unlink()
            else:
                os.replace(pending, committed)
        except OSError as error:
            raise error if isinstance(error, StoreError) else files.trouble(error, committed) from error

    def discard(self, client: ClientId, round: int, work: str) -> None:
        """Forget a proposal whose update was refused."""
        with contextlib.suppress(FileNotFoundError):
            self._pending(client, round, work).unlink()

    def recover(self, accepted: Iterable[Answer]) -> None:
        """After a kill: commit the proposals of accepted updates, drop all others."""
        if not self.folder.exists():
            return
        for answer in accepted:
            if isinstance(answer, Update):
                self.commit(answer.client, answer.round, answer.work)
        for place in self.folder.iterdir():
            for left in place.glob(f"*{_PENDING}"):
                left.unlink(missing_ok=True)
            files.sweep(place)

    def _place(self, client: str) -> Path:
        return self.folder / _spell(client)

    def _at(self, file: Path) -> Path | Place:
        return self._lay(file, file.parent.name)

    def _pending(self, client: str, round: int, work: str) -> Path:
        return self._place(client) / f"{round}.{_spell(work)}{_PENDING}"


class Kept:
    """Client memory in this process, for a run without a store."""

    def __init__(self) -> None:
        self._committed: dict[str, Tree] = {}
        self._pending: dict[tuple[str, int, str], Tree] = {}

    def get(self, client: ClientId) -> Tree:
        """The committed memory, as a copy that the caller may change; {} where there is none."""
        return state.copy(self._committed.get(client, {}))

    def propose(self, client: ClientId, round: int, work: str, memory: Tree) -> None:
        """Copy what the client wants to remember."""
        self._pending[client, round, work] = state.copy(memory)

    def commit(self, client: ClientId, round: int, work: str) -> None:
        """What was proposed with that update is the client's memory from now on; without a proposal nothing changes."""
        memory = self._pending.pop((client, round, work), None)
        if memory:
            self._committed[client] = memory
        elif memory is not None:
            self._committed.pop(client, None)

    def discard(self, client: ClientId, round: int, work: str) -> None:
        """Forget a proposal whose update was refused."""
        self._pending.pop((client, round, work), None)

    def recover(self, accepted: Iterable[Answer]) -> None:
        """Nothing outlives the process, so nothing is left open."""
        self._pending.clear()


def _spell(name: str) -> str:
    """A file name that no other name has, on any file system: what is readable of it, and a digest of all of it.

    >>> _spell("../etc/passwd")
    '_etc_passwd-7fef78f53440346c04dac510'
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return f"{re.sub('[^A-Za-z0-9_-]+', '_', name)[:60]}-{digest}"
