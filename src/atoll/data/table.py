"""A CSV or Parquet file of one's own as a federated data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll.data.clients import share
from atoll.data.columns import permitted
from atoll.data.frame import inputs, target
from atoll.data.partition.iid import iid
from atoll.data.partition.natural import natural
from atoll.data.partition.parts import Partition
from atoll.data.text import Texts, shared_texts, strings
from atoll.errors import ConfigError, DataError, UnknownName, missing_extra, unknown
from atoll.types import Dataset

if TYPE_CHECKING:
    from pandas import DataFrame


def table(
    path: str,
    label: str | None = None,
    by: str | None = None,
    features: list[str] | None = None,
    text: str | None = None,
    target_text: str | None = None,
    clients: int | None = None,
    partition: Partition | None = None,
    test_fraction: float = 0.1,
    server_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """A CSV, TSV or Parquet file: one client for each value of the column `by`, or `clients` by a partition.

    `features` (None: all columns but `label` and `by`) become x float32 (n, width): numbers standardised over the whole
    file, words one-hot, missing values marked. `label` becomes y: int64 (n,) for classes, float32 (n, 1) for
    measurements. With `text` (and `target_text` or `label`) clients hold the texts of that column instead. The server
    holds out a random `server_fraction` of each client's rows.

    Raises:
        DataError: the file cannot be read, is empty, or a label or text is missing.
        UnknownName: a column is not in the file.
        ConfigError: the partition cannot be made, or the arguments contradict each other.
        MissingExtra: pandas is absent.

    >>> data = table("patients.csv", label="ill", by="hospital")  # doctest: +SKIP
    """
    if text is not None and features is not None:
        raise ConfigError("text and features are both given; a client holds one or the other.")
    how: dict[str, Any] = {"test_fraction": test_fraction, "server_fraction": server_fraction, "seed": seed}
    how |= {"by": by, "clients": clients, "partition": partition}
    wanted = None if text is None and features is None else [label, by, text, target_text, *(features or ())]
    frame = read(Path(path), None if wanted is None else [column for column in wanted if column is not None])
    if text is not None:
        return _texts(Path(path), frame, text, target_text, label, **how)
    if label is None:
        raise ConfigError("neither label nor text is given; say which column there is to learn.")
    return shared_frame(Path(path).stem, frame, label, features=features, source=str(path), **how)


def _texts(
    path: Path,
    frame: DataFrame,
    text: str,
    target_text: str | None,
    label: str | None,
    *,
    by: str | None,
    clients: int | None,
    partition: Partition | None,
    **how: Any,
) -> Dataset:
    """Columns of texts as a federated data set, by a column of owners or a partition."""
    _owned(frame, by, text, target_text, label)
    y, classes = (None, []) if label is None else target(frame, label)
    if y is not None and y.is_floating_point():
        raise DataError(f"the label {label!r} holds measurements; texts are told apart by classes.")
    targets = None if target_text is None else strings(frame[target_text], target_text)
    texts = Texts(strings(frame[text], text), targets, None if y is None else y.tolist())
    owners = None if by is None else {by: frame[by].astype(str).tolist()}
    rule = partition if partition is not None else (iid() if by is None else natural(by))
    count = 10 if clients is None and by is None else clients
    return shared_texts(path.stem, texts, rule, clients=count, about={"source": str(path), "labels": classes}, by=owners, **how)


def _owned(frame: DataFrame, by: str | None, *columns: str | None) -> None:
    """The columns are there, and every row has an owner."""
    known = [str(column) for column in frame.columns]
    for column in (by, *columns):
        if column is not None and column not in known:
            raise unknown("column", column, known)
    if by is not None and frame[by].isna().any():
        raise DataError(
            f"the column {by!r} names the client of a row, but is empty in {int(frame[by].isna().sum())} rows; drop them."
        )


def shared_frame(
    name: str,
    frame: DataFrame,
    label: str,
    *,
    by: str | None,
    features: list[str] | None,
    clients: int | None,
    partition: Partition | None,
    test_fraction: float,
    server_fraction: float,
    seed: int,
    source: str,
) -> Dataset:
    """A pandas DataFrame as a federated data set; see `table`."""
    columns = [str(column) for column in frame.columns]
    _owned(frame, by)
    y, classes = target(frame, label)
    used = features if features is not None else [column for column in columns if column not in (label, by)]
    if label in used:
        raise DataError(f"{label!r} is the label and a feature at once; take it out of features.")
    x, names = inputs(frame, used)
    rule = partition if partition is not None else (iid() if by is None else natural(by))
    return share(
        name,
        {"x": x, "y": y},
        rule,
        clients=10 if clients is None and by is None else clients,
        seed=seed,
        server_fraction=server_fraction,
        test_fraction=test_fraction,
        about={"source": source, "features": names, "labels": classes},
        by=None if by is None else {by: frame[by].astype(str).tolist()},
    )


def read(path: Path, columns: Sequence[str] | None = None) -> DataFrame:
    """A CSV, TSV or Parquet file as a pandas DataFrame: all of it, or some columns, and then the others are not read.

    Raises:
        UnknownName: a column is not there.
        DataError: it is not there, not of that form, has no rows, or a column may not be read here (`data.columns`).
        MissingExtra: pandas is absent.
    """
    try:
        import pandas
    except ImportError:
        raise missing_extra("pandas", "data", "tables") from None
    if path.suffix.lower() not in (".csv", ".tsv", ".parquet"):
        raise DataError(f"{path} ends in {path.suffix!r}, but a table is a .csv, .tsv or .parquet file.")
    if not path.is_file():
        raise DataError(f"there is no file {path}; give the path of a .csv, .tsv or .parquet file.")
    try:
        known = _columns(path)
        chosen = known if columns is None else list(dict.fromkeys(columns))
        for column in chosen:
            if column not in known:
                raise unknown("column", column, known)
        permitted(chosen)
        if path.suffix.lower() == ".parquet":
            frame = pandas.read_parquet(path, columns=None if columns is None else chosen)
        else:
            frame = pandas.read_csv(path, sep=_separator(path), usecols=None if columns is None else chosen)
    except (DataError, UnknownName):
        raise
    except (OSError, ValueError) as error:  # pandas' and pyarrow's parser errors are ValueErrors
        raise DataError(f"{path} cannot be read as a table: {error}.") from error
    if len(frame) == 0:
        raise DataError(f"{path} has no rows.")
    return frame


def _columns(path: Path) -> list[str]:
    """The names of a table's columns; no row is read."""
    import pandas

    if path.suffix.lower() != ".parquet":
        return [str(column) for column in pandas.read_csv(path, sep=_separator(path), nrows=0).columns]
    from pyarrow import parquet

    return [name for name in parquet.read_schema(path).names if not name.startswith("__index_level_")]


def _separator(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","
