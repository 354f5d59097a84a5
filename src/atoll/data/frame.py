"""From a table of numbers and words to one tensor of numbers: standardised, one-hot, with indicators of what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atoll.errors import DataError, unknown


def inputs(
    frame: Any, features: Sequence[str], scale: Mapping[str, tuple[float, float]] | None = None
) -> tuple[Tensor, list[str]]:
    """Columns of a pandas DataFrame as float32 (n, width), and what each of the `width` is.

    A numeric column becomes (value - centre) / spread, with (centre, spread) from `scale` or else its mean and standard
    deviation; a missing value becomes 0, and a column that has some gets a second one that says where. A column of words
    or of True and False becomes one column a value, all 0 where it is missing.

    Raises:
        UnknownName: a feature is not a column.
        DataError: a column holds infinities, or more different words than a one-hot code makes sense for (1,000).

    >>> import pandas
    >>> x, names = inputs(pandas.DataFrame({"age": [40.0, None], "sex": ["f", "m"]}), ["age", "sex"], {"age": (50.0, 10.0)})
    >>> names, x.tolist()
    (['age', 'age missing', 'sex f', 'sex m'], [[-1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
    """
    columns: list[np.ndarray[Any, Any]] = []
    names: list[str] = []
    for name in features:
        if name not in frame.columns:
            raise unknown("column", name, [str(column) for column in frame.columns])
        made = _numeric(frame[name], scale) if is_numeric(frame[name]) else _words(frame[name])
        for title, values in made.items():
            names.append(title)
            columns.append(values.astype(np.float32))
    if not columns:
        raise DataError("there is no feature left to learn from; name one or more feature columns.")
    return torch.from_numpy(np.stack(columns, axis=1)), names


def is_numeric(series: Any) -> bool:
    """Whether a column holds numbers (True and False are words)."""
    return series.dtype.kind in "iuf"


def _numeric(series: Any, scale: Mapping[str, tuple[float, float]] | None) -> dict[str, np.ndarray[Any, Any]]:
    name = str(series.name)
    values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    missing = np.isnan(values)
    if np.isinf(values).any():
        raise DataError(
            f"the column {name!r} holds an infinity in row {int(np.isinf(values).argmax())}; replace it or leave it empty."
        )
    if missing.all():
        raise DataError(f"the column {name!r} holds no number at all; leave it out of the features.")
    centre, spread = (scale or {}).get(name) or (values[~missing].mean(), values[~missing].std())
    made = {name: np.where(missing, 0.0, (values - centre) / (spread or 1.0))}
    if missing.any():
        made[f"{name} missing"] = missing
    return made


def _words(series: Any) -> dict[str, np.ndarray[Any, Any]]:
    known = sorted({str(value) for value in series.dropna()})
    if len(known) > 1000:
        raise DataError(
            f"the column {str(series.name)!r} holds {len(known)} different values, which is no category; leave it out."
        )
    words = (
        series.astype("object").where(series.notna(), None).map(lambda value: None if value is None else str(value)).to_numpy()
    )
    return {f"{series.name} {value}": words == value for value in known}


def target(frame: Any, label: str) -> tuple[Tensor, list[str]]:
    """The column to learn: classes as int64 (n,) with their names, or measurements as float32 (n, 1) with no names.

    Words, True and False, and whole numbers of at most 100 values are classes; other numbers are measurements.

    Raises:
        UnknownName: there is no such column.
        DataError: a label is missing or infinite.

    >>> import pandas
    >>> target(pandas.DataFrame({"ill": ["no", "yes", "no"]}), "ill")
    (tensor([0, 1, 0]), ['no', 'yes'])
    """
    if label not in frame.columns:
        raise unknown("column", label, [str(column) for column in frame.columns])
    series = frame[label]
    missing = series.isna().to_numpy()
    if missing.any():
        raise DataError(
            f"the label {label!r} is missing in {int(missing.sum())} rows, first in row {int(missing.argmax())}; drop them."
        )
    if is_numeric(series) and (infinite := np.isinf(series.to_numpy(dtype=np.float64))).any():
        raise DataError(f"the label {label!r} holds an infinity in row {int(infinite.argmax())}; drop it.")
    whole = not is_numeric(series) or (series.to_numpy() % 1 == 0).all()
    if whole and series.nunique() <= 100:
        values = series.astype(str) if not is_numeric(series) else series.astype("int64")
        classes, numbers = np.unique(values.to_numpy(), return_inverse=True)
        return torch.from_numpy(numbers.reshape(-1)).long(), [str(value) for value in classes]
    if not is_numeric(series):
        raise DataError(f"the label {label!r} holds {series.nunique()} different words; a class needs to occur more than once.")
    return torch.from_numpy(series.to_numpy(dtype=np.float32)).unsqueeze(1), []
