"""LSTM forecaster (Hochreiter and Schmidhuber 1997): the last hidden state, mapped linearly to the whole horizon."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atoll.models.units import Axis, Units
from atoll.rng import seeded


class _Forecaster(nn.Module):
    def __init__(self, features: int, horizon: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, horizon)
        self.names = [[f"{kind}_{part}_l{i}" for kind in ("weight", "bias") for part in ("ih", "hh")] for i in range(layers)]

    def forward(self, x: Tensor) -> Tensor:
        # nn.LSTM.forward reads a list of its weights made when it was built; a fold binds others by name. Layer by layer,
        # since in a smaller model each may have its own number of units.
        for names in self.names:
            weights = [getattr(self.lstm, name) for name in names]
            start = x.new_zeros(1, x.shape[0], weights[1].shape[1])
            x = torch.lstm(x, [start, start], weights, True, 1, 0.0, self.training, False, True)[0]
        forecast: Tensor = self.head(x[:, -1])
        return forecast

    def hidden_units(self) -> list[Units]:
        """The units of each layer, four gates each, read by their own layer and by the next one or the head."""
        count, layers = self.lstm.hidden_size, self.lstm.num_layers
        found = []
        for i in range(layers):
            made = [Axis(f"lstm.{part}_l{i}", 0, outer=4) for part in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")]
            after = f"lstm.weight_ih_l{i + 1}" if i + 1 < layers else "head.weight"
            found.append(Units(f"lstm.l{i}", count, (*made, Axis(f"lstm.weight_hh_l{i}", 1, True), Axis(after, 1, True))))
        return found


def lstm(features: int = 1, horizon: int = 1, hidden: int = 32, layers: int = 1, seed: int = 0) -> nn.Module:
    """LSTM forecaster: windows x (n, past, features) -> (n, horizon).

    >>> lstm(features=2, horizon=7)(torch.zeros(3, 14, 2)).shape
    torch.Size([3, 7])
    """
    with seeded(seed):
        return _Forecaster(features, horizon, hidden, layers)
