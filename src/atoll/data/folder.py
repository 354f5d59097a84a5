"""A folder of one's own as a federated data set: one sub-folder a client, or images in one sub-folder a class."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atoll.data.clients import share
from atoll.data.partition.iid import iid
from atoll.data.partition.natural import natural
from atoll.data.partition.parts import Partition
from atoll.data.table import read, shared_frame
from atoll.data.text import in_order
from atoll.errors import DataError, missing_extra
from atoll.types import Dataset

_TABLES = {".csv", ".tsv", ".parquet"}
_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}


def folder(
    path: str,
    label: str = "y",
    clients: int | None = None,
    partition: Partition | None = None,
    image_size: int | None = None,
    test_fraction: float = 0.1,
    server_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """A folder with one sub-folder a client, each with files of one kind; or images, by class.

    - `.csv`, `.tsv`, `.parquet`: tables of the same columns, one of them `label`; see `atoll.data.table.table`.
    - `.npz`: arrays of the same names, shapes and types, examples on the first axis; floats become float32.
    - `.txt`: texts, one a paragraph, split in their order.
    - images in `client/class/`: x float32 (n, channels, height, width) in 0 to 1 and y; or in `class/`, divided among
      `clients` (10) by `partition` (at random). `image_size` makes each a square of that many pixels.

    `clients` takes that many of the sub-folders, those that hold most.

    Raises:
        DataError: the folder, a file or an array is not of that form, or a client's folder is empty.
        ConfigError: more clients are asked for than there are, or the partition cannot be made.
        MissingExtra: pandas is absent, and there are tables.

    >>> data = folder("hospitals")  # doctest: +SKIP
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; give the path of one that has a sub-folder for each client.")
    parts = {part.name: _files(part) for part in sorted(root.iterdir()) if part.is_dir() and not part.name.startswith(".")}
    if not parts:
        raise DataError(f"{root} has no sub-folder, but each client's files belong in one.")
    for name, files in parts.items():
        if not files:
            raise DataError(f"client {name!r} has no data: {root / name} holds no file; remove it or fill it.")
    kinds = {_kind(file) for files in parts.values() for file in files}
    if len(kinds) != 1:
        raise DataError(f"{root} mixes {' and '.join(sorted(kinds))}; keep files of one kind.")
    kind = kinds.pop()
    how: dict[str, Any] = {"test_fraction": test_fraction, "server_fraction": server_fraction}
    if kind == "texts":
        return _texts(root, parts, clients, how)
    if kind == "tables":
        import pandas  # `read` has said it if it is absent

        frames = [read(file).assign(**{"client folder": name}) for name, files in parts.items() for file in files]
        frame = pandas.concat(frames, ignore_index=True)
        by = "client folder"
        return shared_frame(
            root.name,
            frame,
            label,
            by=by,
            features=None,
            clients=clients,
            partition=partition,
            seed=seed,
            source=str(root),
            **how,
        )
    columns, owners, classes = _arrays(parts) if kind == "arrays" else _images(root, parts, image_size)
    natural_owners = owners is not None
    rule = partition if partition is not None else (natural("client folder") if natural_owners else iid())
    return share(
        root.name,
        columns,
        rule,
        clients=10 if clients is None and not natural_owners else clients,
        seed=seed,
        about={"source": str(root), "labels": classes},
        by=None if owners is None else {"client folder": owners},
        **how,
    )


def _files(part: Path) -> list[Path]:
    return sorted(file for file in part.rglob("*") if file.is_file() and not file.name.startswith("."))


def _kind(file: Path) -> str:
    suffix = file.suffix.lower()
    kind = {".npz": "arrays", ".txt": "texts"}.get(suffix) or (
        "tables" if suffix in _TABLES else "images" if suffix in _IMAGES else ""
    )
    if not kind:
        raise DataError(f"{file} is of no kind that is read here: .csv, .tsv, .parquet, .npz, .txt or an image.")
    return kind


def _texts(root: Path, parts: dict[str, list[Path]], clients: int | None, how: dict[str, Any]) -> Dataset:
    own: dict[str, list[str]] = {}
    for name, files in parts.items():
        try:
            whole = "\n\n".join(file.read_text(encoding="utf-8") for file in files)
        except UnicodeDecodeError as error:
            raise DataError(f"a text of client {name!r} is not UTF-8 ({error}); convert it.") from error
        own[name] = [paragraph.strip() for paragraph in re.split(r"\n\s*\n", whole) if paragraph.strip()]
        if not own[name]:
            raise DataError(f"client {name!r} has no data: its texts in {root / name} are empty.")
    if clients is not None:
        # natural() takes the largest and words the refusal; a text counts as one example
        owners = [name for name, texts in own.items() for _ in texts]
        own = {part.name: own[part.name] for part in natural("client folder")({"client folder": owners}, clients, 0)}
    return in_order(root.name, own, {"source": str(root)}, **how)


def _arrays(parts: dict[str, list[Path]]) -> tuple[dict[str, Tensor], list[str], list[str]]:
    pieces: dict[str, list[Tensor]] = {}
    owners: list[str] = []
    for name, files in parts.items():
        for file in files:
            found = _loaded(file)
            if pieces and (set(found) != set(pieces)):
                raise DataError(f"{file} holds the arrays {sorted(found)}, but others hold {sorted(pieces)}.")
            for key, tensor in found.items():
                first = pieces.setdefault(key, [tensor])[0]
                if first is tensor:
                    continue
                if (first.shape[1:], first.dtype) != (tensor.shape[1:], tensor.dtype):
                    raise DataError(
                        f"{file}: {key!r} is {tensor.dtype} of shape {tuple(tensor.shape)}, but elsewhere {first.dtype} of "
                        f"shape {tuple(first.shape)}; only the first axis may differ."
                    )
                pieces[key].append(tensor)
            owners += [name] * len(next(iter(found.values())))
        if name not in owners[-1:]:
            raise DataError(f"client {name!r} has no data: its arrays have no example; remove its folder or fill it.")
    return {key: torch.cat(tensors) for key, tensors in pieces.items()}, owners, []


def _loaded(file: Path) -> dict[str, Tensor]:
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {key: content[key] for key in content.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file} cannot be read as .npz: {error}.") from error
    lengths = {key: len(array) if array.ndim else -1 for key, array in arrays.items()}
    if len(set(lengths.values())) != 1 or -1 in lengths.values():
        raise DataError(f"{file} needs one or more arrays of one length, got {lengths}.")
    tensors = {}
    for key, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise DataError(f"{file}: {key!r} is {array.dtype}, but only numbers can be learnt from.")
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise DataError(
                f"{file}: {key!r} holds NaN, first in example {int(np.isnan(array).nonzero()[0][0])}; fill or drop it."
            )
        tensors[key] = torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))
    return tensors


def _images(
    root: Path, parts: dict[str, list[Path]], image_size: int | None
) -> tuple[dict[str, Tensor], list[str] | None, list[str]]:
    """Columns, the client of each image (None: the folders are classes), and the classes."""
    depths = {len(file.relative_to(root).parts) for files in parts.values() for file in files}
    if depths not in ({2}, {3}):
        raise DataError(f"the images in {root} lie at different depths; keep them all in class/ or all in client/class/.")
    files = [file for group in parts.values() for file in group]
    names = [file.parent.name for file in files]
    classes = sorted(set(names))
    owners = [file.relative_to(root).parts[0] for file in files] if depths == {3} else None
    x = [_image(file, image_size) for file in files]
    for file, one in zip(files, x, strict=True):
        if one.shape != x[0].shape:
            raise DataError(f"{file} has shape {tuple(one.shape)}, but {files[0]} {tuple(x[0].shape)}; set image_size.")
    return {"x": torch.stack(x), "y": torch.tensor([classes.index(name) for name in names])}, owners, classes


def _image(file: Path, size: int | None) -> Tensor:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise missing_extra("pillow", "data", "images") from None
    try:
        with Image.open(file) as image:
            plain = image.convert("L" if image.mode in ("1", "L", "I", "I;16", "F") else "RGB")
            pixels = np.asarray(plain if size is None else plain.resize((size, size)), dtype=np.float32)
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{file} cannot be read as an image: {error}.") from error
    return torch.from_numpy(pixels / 255).reshape(*pixels.shape[:2], -1).permute(2, 0, 1).contiguous()
