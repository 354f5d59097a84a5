"""A data set of the Hugging Face hub, or one that `datasets` has saved to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from atoll.data.clients import share
from atoll.data.columns import permitted
from atoll.data.frame import target
from atoll.data.partition.iid import iid
from atoll.data.partition.natural import natural
from atoll.data.partition.parts import Partition
from atoll.data.table import shared_frame
from atoll.data.text import Texts, shared_texts, strings
from atoll.errors import ConfigError, DataError, FetchError, missing_extra, unknown
from atoll.types import Dataset


def hub(
    source: str,
    split: str = "train",
    config: str | None = None,
    text: str | None = None,
    target_text: str | None = None,
    image: str | None = None,
    label: str | None = None,
    features: list[str] | None = None,
    by: str | None = None,
    clients: int | None = None,
    partition: Partition | None = None,
    limit: int | None = None,
    test_fraction: float = 0.1,
    server_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """A data set by its name on the Hugging Face hub or the path of one saved with `save_to_disk`.

    With `text` (and `target_text` or `label`) clients hold texts; with `image`, x float32 (n, channels, height, width) in
    0 to 1 and y from `label`; else `features` (None: all columns) become x as in `atoll.data.table.table`. There is one
    client for each value of the column `by`, or `clients` (10) by a partition. `limit` reads that many rows.

    Raises:
        FetchError: it could not be loaded.
        UnknownName: a column is not there.
        DataError: a text, label or image is missing or of another kind.
        ConfigError: the arguments contradict each other, or the partition cannot be made.
        MissingExtra: datasets is absent.

    >>> data = hub("ag_news", text="text", label="label", clients=20)  # doctest: +SKIP
    """
    if text is not None and image is not None:
        raise ConfigError("text and image are both given; a client holds one or the other.")
    if text is None and label is None:
        raise ConfigError("neither text nor label is given; say what there is to learn.")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}, but must be 1 or more: the number of rows to read.")
    rows = _loaded(source, config, split)
    named = [column for column in (text, target_text, image, label, by, *(features or ())) if column is not None]
    for column in named:
        if column not in rows.column_names:
            raise unknown("column", column, rows.column_names)
    wanted = rows.column_names if text is None and image is None and features is None else list(dict.fromkeys(named))
    permitted(wanted)
    rows = rows.select_columns(wanted)
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    if len(rows) == 0:
        raise DataError(f"{source} has no rows in its split {split!r}.")
    count = 10 if clients is None and by is None else clients
    rule = partition if partition is not None else (iid() if by is None else natural(by))
    how: dict[str, Any] = {"seed": seed, "test_fraction": test_fraction, "server_fraction": server_fraction}
    title = Path(source).name
    owners = None if by is None else {by: [str(value) for value in rows[by]]}
    if text is None and image is None and label is not None:
        frame = rows.to_pandas()
        return shared_frame(
            title, frame, label, by=by, features=features, clients=count, partition=partition, source=source, **how
        )
    y, classes = (None, []) if label is None else _classes(rows, label)
    about = {"source": source, "labels": classes}
    if image is not None:
        assert y is not None  # checked above: no text, so there is a label
        columns = {"x": torch.stack([_image(one, image) for one in rows[image]]), "y": y}
        return share(title, columns, rule, clients=count, about=about, by=owners, **how)
    targets = None if target_text is None else strings(rows[target_text], target_text)
    texts = Texts(strings(rows[text], str(text)), targets, None if y is None else y.tolist())
    return shared_texts(title, texts, rule, clients=count, about=about, by=owners, **how)


def _loaded(name: str, config: str | None, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise missing_extra("datasets", "data", "data sets of the hub") from None
    try:
        saved = Path(name, "dataset_dict.json").is_file() or Path(name, "state.json").is_file()
        found = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError, IndexError) as error:  # datasets raises all, IndexError for an empty folder
        raise FetchError(
            f"the data set {name!r} could not be loaded: {error}. Give a name on the hub or a saved folder."
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise unknown("split", split, [str(key) for key in found])
        return found[split]
    return found


def _classes(rows: Any, label: str) -> tuple[torch.Tensor, list[str]]:
    names = getattr(rows.features[label], "names", None)
    values, classes = target(rows.select_columns([label]).to_pandas(), label)
    if not names:
        return values, classes
    numbers = torch.tensor(rows[label][:])  # the hub's own numbers, which may skip a class
    if (numbers < 0).any():
        raise DataError(
            f"the label {label!r} is missing (-1) in {int((numbers < 0).sum())} rows; choose a split that has labels."
        )
    return numbers, list(names)


def _image(value: Any, column: str) -> torch.Tensor:
    pixels = np.asarray(value, dtype=np.float32)
    if pixels.ndim not in (2, 3):
        raise DataError(f"the column {column!r} holds a value of shape {pixels.shape}, which is no image.")
    return torch.from_numpy(pixels / 255).reshape(*pixels.shape[:2], -1).permute(2, 0, 1).contiguous()
