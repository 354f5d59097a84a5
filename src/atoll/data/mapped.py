"""A data set that `atoll data pack` has written, mapped into memory: nothing is read before it is used, and held once a machine.

A mapped page belongs to the file: all processes of a machine that read it share one copy, which the system may drop and
read again. What is pickled of such data is the file's path and the rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor

from atoll.data.examples import Tensors
from atoll.data.packed import FORMAT, KEY
from atoll.data.spans import Ids, Spans
from atoll.errors import DataError, VersionError
from atoll.types import Dataset

_MEND = "write it anew with `atoll data pack`"
_LISTED = ("clients.names", "clients.ends", "clients.hashes", "clients.order", "clients.bounds")


def mapped(path: str) -> Dataset:
    """A data set in a file that `atoll data pack` wrote: mapped, so that it may be larger than memory; any number of clients.

    Raises:
        DataError: there is no such file, or it is damaged or of another kind.
        VersionError: a newer Atoll wrote it.

    >>> import tempfile, torch
    >>> from atoll.data.packed import pack
    >>> from atoll.types import ClientId
    >>> one = Dataset("toy", {ClientId("a"): {"train": Tensors({"y": torch.arange(3)})}}, Tensors({"y": torch.tensor([7])}))
    >>> data = mapped(str(pack(one, Path(tempfile.mkdtemp(), "toy.safetensors"))))
    >>> data.clients["a"]["train"].column("y").tolist(), data.test.column("y").tolist()
    ([0, 1, 2], [7])
    """
    found = dataset_in(opened(path))
    return found._replace(about={"source": str(path), **found.about})


def dataset_in(file: File, by_path: bool = True) -> Dataset:
    """The data set in an open file. Without `by_path` a pickle of it carries what the file holds, for who can't see the file."""
    clients, last = clients_of(file, by_path), int(file.tensors["clients.bounds"][-1])
    test = clients.whole.span(last, file.rows) if file.told["held_out"] else None
    return Dataset(file.told["name"], clients, test, file.told["about"])


def opened(path: str | Path) -> File:
    """The file, mapped; what was written to that path since is seen.

    Raises:
        DataError: there is no such file, or it is damaged or of another kind.
        VersionError: a newer Atoll wrote it.
    """
    return _opened(str(Path(path).expanduser().absolute()))


class File:
    """One open file; it is open once a process, and a pickle of it is its path and digest."""

    __slots__ = ("__weakref__", "path", "rows", "tensors", "told")

    def __init__(self, path: str) -> None:
        """Raises: DataError: no such file, or not one of ours; VersionError: of a newer Atoll."""
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            with safe_open(path, framework="pt") as content:
                told = (content.metadata() or {}).get(KEY, "")
                # A view of the mapping each: the safetensors package copies nothing on the CPU.
                self.tensors: Mapping[str, Tensor] = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        except FileNotFoundError as error:
            raise DataError(f"there is no file {path} on this machine; give one that `atoll data pack` wrote.") from error
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is damaged, or no file of `atoll data pack` ({error}); {_MEND}.") from error
        self.told = self._told(told)
        self.rows = self._rows()

    def _told(self, text: str) -> Mapping[str, Any]:
        """What the header says of the data set."""
        try:
            told = json.loads(text)
            missing = [key for key in ("format", "name", "splits", "held_out", "about", "largest", "sha256") if key not in told]
        except (ValueError, TypeError) as error:
            raise DataError(f"{self.path} is a safetensors file, but not one of a data set; {_MEND}.") from error
        if "format" in told and told["format"] > FORMAT:
            raise VersionError(
                f"{self.path} is of format {told['format']}, and this Atoll reads up to {FORMAT}: upgrade Atoll, or {_MEND}."
            )
        if missing:
            raise DataError(f"{self.path} is damaged: its header has no {', '.join(missing)}; {_MEND}.")
        return dict(told)

    def _rows(self) -> int:
        """How many there are, after a check that every span lies within them."""
        absent = [name for name in _LISTED if name not in self.tensors]
        lengths = {len(x) for name, x in self.tensors.items() if name.startswith("data.")}
        if absent or len(lengths) != 1:
            columns = "columns of different lengths" if lengths else "no column of examples"
            raise DataError(f"{self.path} has {f'no {absent[0]}' if absent else columns}; {_MEND}.")
        rows = lengths.pop()
        text, ends, hashes, order, bounds = (self.tensors[name] for name in _LISTED)
        fits = len(ends) == len(hashes) == len(order) and len(bounds) == len(ends) * len(self.told["splits"]) + 1
        for marks, last in ((ends, len(text)), (bounds, rows)):
            fits = fits and bool((marks.diff() >= 0).all()) and (not len(marks) or 0 <= int(marks[0]) <= int(marks[-1]) <= last)
        if not fits or (len(order) and not 0 <= int(order.min()) <= int(order.max()) < len(order)):
            raise DataError(f"{self.path} is damaged: its clients hold rows that are not there; {_MEND}.")
        return rows

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self.path, self.told["sha256"])


class Columns(dict[str, Tensor]):
    """The columns of a file; a pickle of them is the file's path, so that who loads it maps the same pages.

    A dict, and not only a Mapping, since every batch walks over it.
    """

    __slots__ = ("_file",)

    def __init__(self, file: File) -> None:
        super().__init__((name.removeprefix("data."), x) for name, x in file.tensors.items() if name.startswith("data."))
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Columns, (self._file,)


def clients_of(file: File, by_path: bool = True) -> Spans:
    """The clients of a file, made when they are asked for."""
    text, ends, hashes, order, bounds = (file.tensors[name] for name in _LISTED)
    telling = dict.fromkeys([0, *file.told["largest"].values()]) if int(bounds[-1]) else ()
    columns, again = (Columns(file), (clients_of, (file,))) if by_path else (dict(Columns(file)), None)
    return Spans(Ids(text, ends, hashes, order), file.told["splits"], bounds, Tensors(columns), again, tuple(telling))


_OPEN: WeakValueDictionary[str, File] = WeakValueDictionary()


def _opened(path: str, sha256: str | None = None) -> File:
    """The file, opened unless it is open; `sha256` is what is expected of it by who held it when it was pickled."""
    file = _OPEN.get(path)
    if sha256 is None or file is None:
        file = _OPEN[path] = File(path)  # anew for a user who asks: it may have been written anew
    if sha256 not in (None, file.told["sha256"]):
        raise DataError(f"{path} holds other data than it did when the work began; put the first file back, or start anew.")
    return file
