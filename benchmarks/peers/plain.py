"""The models and the training loop that all PyTorch peers share: nn.Module, torch.optim.SGD, a loop over batches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional
from workload import BATCH, EPOCHS, LR, Data


class Mlp(nn.Sequential):
    """784-200-200-10 with ReLU: x (n, 1, 28, 28) -> (n, 10)."""

    def __init__(self) -> None:
        layers: dict[str, nn.Module] = {
            "flatten": nn.Flatten(),
            "hidden1": nn.Linear(784, 200),
            "relu1": nn.ReLU(),
            "hidden2": nn.Linear(200, 200),
            "relu2": nn.ReLU(),
            "output": nn.Linear(200, 10),
        }
        super().__init__(OrderedDict(layers))


class Cnn(nn.Sequential):
    """Two padded 5x5 convolutions with 2x2 pooling, a dense layer of 512: x (n, 1, 28, 28) -> (n, 10)."""

    def __init__(self) -> None:
        layers: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(1, 32, 5, padding=2),
            "relu1": nn.ReLU(),
            "pool1": nn.MaxPool2d(2),
            "conv2": nn.Conv2d(32, 64, 5, padding=2),
            "relu2": nn.ReLU(),
            "pool2": nn.MaxPool2d(2),
            "flatten": nn.Flatten(),
            "hidden": nn.Linear(64 * 7 * 7, 512),
            "relu": nn.ReLU(),
            "output": nn.Linear(512, 10),
        }
        super().__init__(OrderedDict(layers))


def model(name: str) -> nn.Module:
    """The module of a workload, as PyTorch initialises it."""
    return Mlp() if name == "mlp" else Cnn()


@cache
def resident(name: str) -> nn.Module:
    """The module that a client process keeps: made once, its parameters loaded for each client."""
    torch.set_num_threads(1)
    return model(name)


def client(data: Data, number: int) -> tuple[Tensor, Tensor]:
    """The images and labels of one client, as views of the mapped file."""
    return torch.from_numpy(data.x[number]), torch.from_numpy(data.y[number])


def train(module: nn.Module, x: Tensor, y: Tensor) -> None:
    """One client's work: EPOCHS passes in a new order each, SGD in batches of BATCH."""
    optimiser = torch.optim.SGD(module.parameters(), lr=LR)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(x)), BATCH):
            optimiser.zero_grad()
            functional.cross_entropy(module(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()


@torch.no_grad()
def accuracy(name: str, params: Mapping[str, Tensor], data: Data) -> float:
    """The share of the test images that the model of these parameters labels rightly."""
    module = model(name)
    module.load_state_dict(dict(params))
    x, y = torch.from_numpy(data.test_x), torch.from_numpy(data.test_y)
    hits = sum(int((module(a).argmax(-1) == b).sum()) for a, b in zip(torch.split(x, 500), torch.split(y, 500), strict=True))
    return hits / len(y)
