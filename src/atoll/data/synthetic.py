"""A synthetic set whose clients are made when they are asked for, after Synthetic(alpha, beta) of arXiv:1812.06127, section 5.1.

y = argmax(W_k x + b_k), W_k ~ N(W, alpha), b_k ~ N(b, alpha); x ~ N(v_k, S), S diagonal with S_jj = j^-1.2, v_k ~ N(0, beta):
`alpha` lets the clients' models differ, `beta` their inputs. The paper draws W_k around a number u_k instead of around one W of
all; then no model fits two clients even at alpha = 0, and a number added to all of W_k changes no label. All of a client is a
function of (seed, client), so that memory goes with those at work, whatever the number of clients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from atoll import rng
from atoll.data.clients import test_size
from atoll.data.examples import Tensors
from atoll.errors import ConfigError
from atoll.types import Batch, ClientId, Dataset, Examples

ABOUT = {
    "source": "drawn by a seed: Synthetic(alpha, beta) of arXiv:1812.06127",
    "licence": "none is needed",
    "examples": "log-normal in number, made when they are read",
    "clients": "any number",
    "split": "each client a random share of its own; the server holds examples of clients that never train",
    "inputs": "x float32 (n, features); y int64 (n,)",
}
HELD_OUT_CLIENTS = 20


def synthetic(
    clients: int = 30,
    alpha: float = 0.5,
    beta: float = 0.5,
    features: int = 60,
    classes: int = 10,
    mean_examples: float = 50.0,
    spread: float = 1.0,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Synthetic(alpha, beta) (FedProx, arXiv:1812.06127): each client made when it is asked for, so there may be millions.

    `mean_examples` a client, lognormal with `spread` as the sigma of the logarithm, at least two.

    Raises ConfigError for a number out of range.

    >>> data = synthetic(clients=1_000_000)
    >>> len(data.clients), len(data.clients["client-123456"]["train"].take(torch.arange(2))["y"])
    (1000000, 2)
    """
    for name, value in (("clients", clients), ("features", features), ("mean_examples", mean_examples)):
        if not value > 0:
            raise ConfigError(f"synthetic {name} = {value}: must be above 0")
    if alpha < 0 or beta < 0 or spread < 0 or classes < 2:
        raise ConfigError(
            f"synthetic alpha = {alpha}, beta = {beta}, spread = {spread}: 0 or more; classes = {classes}: 2 or more"
        )
    draw = rng.generator(seed, "synthetic")
    common = Common(
        torch.randn(features, classes, generator=draw),
        torch.randn(classes, generator=draw),
        torch.arange(1, features + 1, dtype=torch.float32).pow(-0.6),
        alpha,
        beta,
        seed,
    )
    made = Made(clients, common, mean_examples, spread, test_fraction)
    held = [common.examples(ClientId(f"server-{i}"), round(mean_examples)) for i in range(HELD_OUT_CLIENTS)]
    test = Tensors({name: torch.cat([each[name] for each in held]) for name in ("x", "y")})
    return Dataset("synthetic", made, test, ABOUT)


class Common:
    """What all clients share: the model around which theirs lie, the scales of the inputs, the seed."""

    def __init__(self, weight: Tensor, bias: Tensor, scale: Tensor, alpha: float, beta: float, seed: int) -> None:
        self.weight, self.bias, self.scale, self.alpha, self.beta, self.seed = weight, bias, scale, alpha, beta, seed

    def examples(self, client: ClientId, count: int) -> dict[str, Tensor]:
        """A client's examples, always the same."""
        draw = rng.generator(self.seed, "synthetic", client)
        weight = self.weight + self.alpha**0.5 * torch.randn(self.weight.shape, generator=draw)
        bias = self.bias + self.alpha**0.5 * torch.randn(self.bias.shape, generator=draw)
        centre = self.beta**0.5 * torch.randn(self.scale.shape, generator=draw)
        x = centre + self.scale * torch.randn(count, len(self.scale), generator=draw)
        y = (x @ weight + bias).argmax(1)
        return {"x": x, "y": y}


class Made(Mapping[ClientId, Mapping[str, Examples]]):
    """Clients `client-0...` by name; nothing of them is held."""

    def __init__(self, count: int, common: Common, mean_examples: float, spread: float, test_fraction: float) -> None:
        self._count, self._width, self._common = count, len(str(count - 1)), common
        self._mean, self._spread, self._test_fraction = mean_examples, spread, test_fraction

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[ClientId]:
        return (ClientId(f"client-{i:0{self._width}d}") for i in range(self._count))

    def __contains__(self, client: object) -> bool:
        number = client.removeprefix("client-") if isinstance(client, str) else ""
        return number.isdecimal() and int(number) < self._count and client == f"client-{int(number):0{self._width}d}"

    def __getitem__(self, client: ClientId) -> Mapping[str, Examples]:
        if client not in self:
            raise KeyError(client)
        z = float(torch.randn((), generator=rng.generator(self._common.seed, "synthetic examples", client)))
        mean = torch.tensor(self._mean).log() - self._spread**2 / 2
        count = max(2, round(float((mean + self._spread * z).exp())))
        test = test_size(count, self._test_fraction)
        return {
            "train": Later(self._common, client, count, 0, count - test),
            "test": Later(self._common, client, count, count - test, count),
        }


class Later:
    """Some of a client's examples, made when they are read."""

    def __init__(self, common: Common, client: ClientId, count: int, first: int, end: int) -> None:
        self._common, self._client, self._count, self._first, self._end = common, client, count, first, end
        self._made: Batch | None = None

    def __len__(self) -> int:
        return self._end - self._first

    def take(self, index: Tensor) -> Batch:
        """The examples at `index`, int64 (n,)."""
        if self._made is None:
            whole = self._common.examples(self._client, self._count)
            self._made = {name: column[self._first : self._end] for name, column in whole.items()}
        return {name: column.index_select(0, index) for name, column in self._made.items()}
