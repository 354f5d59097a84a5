"""Tokens kept on disk, so that a text data set is tokenised once: later runs map the file, and load no tokenizer.

A file is named by all that decides what is in it: the texts themselves, the tokenizer's own files, the lengths, and the
versions of the packages that tokenise.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from atoll.data.fetch import cache_folder
from atoll.data.mapped import dataset_in, opened
from atoll.data.packed import pack
from atoll.data.text import Texts
from atoll.errors import DataError
from atoll.types import Dataset

FORM = 1  # raised when atoll.data.text makes other tokens of the same texts
_PACKAGES = ("tokenizers", "transformers", "sentencepiece")
_TOKENIZER_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_WAIT_S = 3600.0  # for another process that tokenises the same


def kept(dataset: Dataset, tokenizer: Path, how: object, make: Callable[[], Dataset]) -> Dataset:
    """`make()`, or what it made in an earlier run of the same texts, of the tokenizer in that folder, and the same `how`.

    Two processes at once make it once. What is returned is mapped from the file, so that workers share its pages. Where the
    cache folder can't be written it warns, and returns what `make` made.

    >>> from atoll.data.fetch import cache_folder
    >>> data = kept(texts, Path("smollm2"), [128], lambda: tokenise(texts, tokenizer, 128))  # doctest: +SKIP
    """
    from filelock import FileLock

    file = cache_folder() / "tokens" / f"{_identity(dataset, tokenizer, how)}.safetensors"
    found = _found(file)
    if found is None:
        lock = FileLock(f"{file}.lock")
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock.acquire(timeout=_WAIT_S)
        except OSError as error:  # no room, no right, or the wait was too long
            return _unkept(make(), error)
        try:
            found = _found(file)  # another process may have made it meanwhile
            if found is None:
                made = make()
                added = {key: value for key, value in made.about.items() if key not in dataset.about}
                try:
                    found = _found(pack(made._replace(about=added), file))
                except DataError as error:
                    return _unkept(made, error)
        finally:
            lock.release()
        assert found is not None  # it was written a moment ago
    return Dataset(dataset.name, found.clients, found.test, {**dataset.about, **found.about})


def _unkept(made: Dataset, error: Exception) -> Dataset:
    warnings.warn(f"tokens are not kept, and the next run tokenises again: {error}", stacklevel=3)
    return made


def _found(file: Path) -> Dataset | None:
    if not file.is_file():
        return None
    try:
        return dataset_in(opened(file), by_path=False)  # other machines of a cluster have another cache
    except DataError:
        return None  # damaged: it is made anew


def _identity(dataset: Dataset, tokenizer: Path, how: object) -> str:
    """SHA-256 of everything that the tokens depend on."""
    digest = hashlib.sha256()
    for said in (FORM, how, _versions(), sorted(_hashes(tokenizer)), *_texts(dataset)):
        line = json.dumps(said).encode()
        digest.update(len(line).to_bytes(8, "big") + line)
    return digest.hexdigest()


def _texts(dataset: Dataset) -> Iterator[Any]:
    held = [(client, split, e) for client, splits in dataset.clients.items() for split, e in splits.items()]
    if dataset.test is not None:
        held.append(("", "", dataset.test))  # type: ignore[arg-type]
    for client, split, examples in held:
        if not isinstance(examples, Texts):
            raise DataError(
                f"{dataset.name} does not hold texts (or is tokenised already), so that there is nothing to tokenise."
            )
        optional = [None if some is None else list(some) for some in (examples.target, examples.labels)]
        yield [client, split, list(examples.text), *optional]


def _hashes(folder: Path) -> Iterator[tuple[str, str]]:
    for pattern in _TOKENIZER_FILES:
        for file in folder.glob(pattern):
            yield file.name, hashlib.sha256(file.read_bytes()).hexdigest()


def _versions() -> list[str]:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} absent")
    return found
