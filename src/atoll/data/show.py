"""Who holds what: the counts of a federated data set, as rows and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from atoll.data.examples import Tensors
from atoll.data.text import Texts
from atoll.errors import DataError
from atoll.types import Dataset, Examples

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_CLIENTS = 40
_MOST_LABELS = 20


class Holding(NamedTuple):
    """What one client holds."""

    client: str
    train: int
    test: int
    labels: Mapping[str, int]  # of the training examples; empty where they have no classes


def holdings(dataset: Dataset) -> list[Holding]:
    """One row a client, in the order of the data set.

    >>> data = Dataset("toy", {"a": {"train": Tensors({"y": torch.tensor([0, 1, 1])})}}, None, {"labels": ["cat", "dog"]})
    >>> holdings(data)
    [Holding(client='a', train=3, test=0, labels={'cat': 1, 'dog': 2})]
    """
    names = dataset.about.get("labels") or []
    rows = []
    for client, splits in dataset.clients.items():
        train, test = splits.get("train"), splits.get("test")
        counts = {} if train is None else _counts(train, names)
        rows.append(Holding(client, len(train or ()), len(test or ()), counts))
    return rows


def table(dataset: Dataset) -> str:
    """Who holds what as plain text: one line a client, its most frequent labels last.

    >>> data = Dataset("toy", {"a": {"train": Tensors({"y": torch.tensor([0, 1, 1])})}}, None, {"labels": ["cat", "dog"]})
    >>> print(table(data))
    client  train  test  labels
    a           3     0  dog 2, cat 1
    """
    rows = [("client", "train", "test", "labels")]
    for row in holdings(dataset):
        most = sorted(row.labels.items(), key=lambda item: (-item[1], item[0]))
        labels = ", ".join(f"{name} {count:,}" for name, count in most[:5]) + (f", {len(most) - 5} more" if len(most) > 5 else "")
        rows.append((row.client, f"{row.train:,}", f"{row.test:,}", labels))
    wide = [max(len(row[place]) for row in rows) for place in range(3)]
    if not any(row[3] for row in rows[1:]):
        rows[0] = (*rows[0][:3], "")
    return "\n".join(
        f"{name:<{wide[0]}}  {train:>{wide[1]}}  {test:>{wide[2]}}  {labels}".rstrip() for name, train, test, labels in rows
    )


def _counts(examples: Examples, names: Sequence[str]) -> dict[str, int]:
    if isinstance(examples, Texts):
        labels = None if examples.labels is None else torch.tensor(examples.labels)
    elif isinstance(examples, Tensors):
        found = next((name for name in ("y", "labels") if name in examples.columns), None)
        labels = None if found is None else examples.column(found)
    else:
        labels = None
    if labels is None or labels.dim() != 1 or labels.is_floating_point():
        return {}
    values, counts = torch.unique(labels, return_counts=True)
    known = {value: names[value] if 0 <= value < len(names) else str(value) for value in values.tolist()}
    return {known[value]: count for value, count in zip(values.tolist(), counts.tolist(), strict=True)}


def plot(dataset: Dataset, path: str | Path) -> Path:
    """Draw one bar a client, its training examples by label or else beside its test examples; the suffix gives the form.

    Of more than 40 clients the largest 40 are drawn, and the title says what the others hold.

    Raises:
        DataError: there is no client, or the file cannot be written.

    >>> plot(data, "who-holds-what.svg")  # doctest: +SKIP
    """
    rows = holdings(dataset)
    if not rows:
        raise DataError(f"{dataset.name} has no client to draw.")
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    shown = rows if len(rows) <= _MOST_CLIENTS else sorted(rows, key=lambda row: -row.train)[:_MOST_CLIENTS]
    figure = Figure(figsize=(9, 1.5 + 0.26 * max(len(shown), 6)), layout="constrained")
    axes = figure.subplots()
    labels = _labels(dataset, rows)
    if labels:
        _bars(
            axes,
            shown,
            {name: [row.labels.get(name, 0) for row in shown] for name in labels},
            "tab10" if len(labels) <= 10 else "tab20",
        )
    else:
        _bars(axes, shown, {"train": [row.train for row in shown], "own test": [row.test for row in shown]}, "tab20")
    handles, titles = axes.get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside right upper", frameon=False, fontsize=9)
    axes.set_title(_title(dataset, rows, shown), loc="left", fontsize=11)
    axes.set_xlabel("training examples" if labels else _unit(dataset), fontsize=9)
    path = Path(path)
    try:
        figure.savefig(path, dpi=144, metadata={"Date": None} if path.suffix == ".svg" else None)
    except (OSError, ValueError) as error:  # ValueError: a suffix that matplotlib has no writer for
        raise DataError(f"{path} could not be written: {error}. Name a .svg or .png file in a folder of yours.") from error
    return path


def _labels(dataset: Dataset, rows: Sequence[Holding]) -> list[str]:
    """The classes that occur, in the order of the data set; none if there are too many to tell apart by colour."""
    seen = {name for row in rows for name in row.labels}
    order = {name: number for number, name in enumerate(dataset.about.get("labels") or [])}
    ranked = sorted(seen, key=lambda name: (order.get(name, len(order)), len(name), name))
    return ranked if len(ranked) <= _MOST_LABELS else []


def _bars(axes: Axes, shown: Sequence[Holding], series: Mapping[str, Sequence[int]], palette: str) -> None:
    from matplotlib import colormaps

    colours: Any = colormaps[palette]
    left = [0] * len(shown)
    for number, (name, widths) in enumerate(series.items()):
        axes.barh(range(len(shown)), widths, left=left, height=0.78, label=name, color=colours(number), linewidth=0)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    longest = max(left)
    for place, total in enumerate(left):
        axes.text(total + 0.008 * longest, place, f"{total:,}", va="center", fontsize=7, color="0.35")
    axes.set_yticks(
        range(len(shown)), [row.client if len(row.client) <= 36 else f"{row.client[:35]}…" for row in shown], fontsize=8
    )
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlim(0, 1.08 * longest if longest else 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _unit(dataset: Dataset) -> str:
    first = next(iter(next(iter(dataset.clients.values())).values()))
    return "texts" if isinstance(first, Texts) else "examples"


def _title(dataset: Dataset, rows: Sequence[Holding], shown: Sequence[Holding]) -> str:
    train = sum(row.train for row in rows)
    text = f"{dataset.name}: {len(rows):,} clients, {train:,} to train on"
    if dataset.test is not None:
        text += f", {len(dataset.test):,} held out by the server"
    if len(shown) < len(rows):
        rest = sorted(row.train for row in rows)[: len(rows) - len(shown)]
        text += f"\nthe {len(shown)} largest; the other {len(rest):,} hold {sum(rest):,}, from {rest[0]:,} to {rest[-1]:,} each"
    return text
