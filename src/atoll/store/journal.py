"""The journal of the open round: every accepted answer in a file of its own, before the client is told that it is safe.

Files are named by the order of acceptance and lie in one folder a round, so that a round begun again after a kill is
replayed answer by answer. A file takes its name only when it is whole: whatever moment the process dies, an answer
is in the journal entirely or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from atoll.errors import StoreError
from atoll.store import files, state
from atoll.store.places import Lay, Place, plain
from atoll.types import Answer, ClientId, Failure, Update

_SUFFIX = ".safetensors"


class FileJournal:
    """A journal in a folder.

    It keeps the open round and `keep` rounds before it, as many as a run has spare checkpoints: a run that must fall
    back to an older checkpoint replays them too, and client memory fits. With `durable` an answer outlives a power
    cut as well as the process, at the price of a flush for each. `lay` may seal the files (`atoll.store.sealed.Seal`).

    >>> import tempfile, torch
    >>> journal = FileJournal(Path(tempfile.mkdtemp()))
    >>> journal.begin(3)
    >>> journal.accept(Update(3, "north", "train", {"w": torch.ones(2)}, 8.0, {"loss": 0.5}))
    >>> [answer.client for answer in journal.accepted(3)]
    ['north']
    """

    def __init__(self, folder: Path | str, *, keep: int = 0, durable: bool = False, lay: Lay = plain) -> None:
        self.folder = Path(folder)
        self.keep = keep
        self.durable = durable
        self._lay = lay
        self._open: Path | None = None
        self._next = 0
        self._files: dict[tuple[int, str, str], Path] = {}

    def begin(self, round: int) -> None:
        """Open a round: files of rounds before `round - keep` are removed, those of this round stay."""
        for kept in self.rounds():
            if kept < round - self.keep:
                shutil.rmtree(self._place(kept), ignore_errors=True)  # what can't be removed only takes room
        self._open = files.make_folder(self._place(round))
        files.sweep(self._open)
        self._next = max((int(file.stem) + 1 for file in self._open.glob(f"*{_SUFFIX}")), default=0)
        self._files.clear()

    def accept(self, answer: Answer) -> None:
        """Write the answer; on return it survives the death of the process.

        Raises StoreError where the disk is full, the folder can't be written, or no round has begun.
        """
        if self._open is None:
            raise StoreError(f"the journal in {self.folder} has no open round; call begin(round) before accept")
        file = self._open / f"{self._next:08d}{_SUFFIX}"
        state.save(
            answer, self._at(file), durable=self.durable, extra={"place": _key(answer), "failed": isinstance(answer, Failure)}
        )
        self._next += 1
        self._files[_key(answer)] = file

    def forgive(self) -> None:
        """Forget the failures of the newest round: when the run goes on, who has failed is asked again."""
        for file in self._kept(max(self.rounds(), default=0)):
            if state.read_extra(self._at(file)).get("failed"):
                file.unlink()

    def hold(self, update: Update) -> Callable[[], Update]:
        """Let go of the update's tensors; the call reads them back from its file while its round is kept."""
        file = self._files.get(_key(update))
        if file is None:
            raise StoreError(f"the update of {update.client!r} for round {update.round} is not in the journal; accept it first")
        return lambda: state.load(None, self._at(file))

    def places(self, round: int) -> Iterator[tuple[int, ClientId, str]]:
        """(round, client, work) of what `accepted` gives, in that order, from the files' heads alone."""
        for file in self._kept(round):
            at, client, work = state.read_extra(self._at(file))["place"]
            yield at, client, work

    def accepted(self, round: int) -> Iterator[Answer]:
        """The answers accepted while `round` was open, in the order in which they were accepted."""
        for file in self._kept(round):
            answer: Answer = state.load(None, self._at(file))
            self._files[_key(answer)] = file
            yield answer

    def rounds(self) -> list[int]:
        """The rounds of which anything is kept."""
        return sorted(int(place.name) for place in self.folder.glob("[0-9]*"))

    def _kept(self, round: int) -> list[Path]:
        return sorted(self._place(round).glob(f"*{_SUFFIX}"))

    def _place(self, round: int) -> Path:
        return self.folder / f"{round:08d}"

    def _at(self, file: Path) -> Path | Place:
        return self._lay(file, f"{file.parent.name}/{file.name}")


class Ephemeral:
    """The journal of a run without a store: nothing survives, and nothing is written."""

    def begin(self, round: int) -> None:
        """Nothing to open."""

    def accept(self, answer: Answer) -> None:
        """Nothing is kept."""

    def hold(self, update: Update) -> Callable[[], Update]:
        """Copy the update, since its buffers are another's once it is acknowledged."""
        own = update._replace(tree=state.copy(update.tree))
        return lambda: own

    def places(self, round: int) -> Iterator[tuple[int, ClientId, str]]:
        """No answers."""
        return iter(())

    def accepted(self, round: int) -> Iterator[Answer]:
        """No answers."""
        return iter(())


def _key(answer: Answer) -> tuple[int, ClientId, str]:
    return (answer.round, answer.client, answer.work)
