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
        self.names = [f"{kind}_{part}_l{i}" for i in range(layers) for kind in ("weight", "bias") for part in ("ih", "hh")]

    def forward(self, x: Tensor) -> Tensor:
        # nn.LSTM.forward reads a list of its weights made when it was built; a fold binds others by name.
        weights = [getattr(self.lstm, name) for name in self.names]
        hidden = weights[1].shape[1]  # of the weights that are bound: a smaller model has fewer units
        start = x.new_zeros(self.lstm.num_layers, x.shape[0], hidden)
        _, last, _ = torch.lstm(x, [start, start], weights, True, self.lstm.num_layers, 0.0, self.training, False, True)
        forecast: Tensor = self.head(last[-1])
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
