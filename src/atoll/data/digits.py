"""Handwritten digits, 1,797 images of 8x8 (Alpaydin & Kaynak 1998): small enough for tests and first steps, no download."""

from __future__ import annotations

import torch

from atoll.data.clients import held_out, share
from atoll.data.examples import Tensors
from atoll.data.partition.iid import iid
from atoll.data.partition.parts import Partition
from atoll.errors import missing_extra
from atoll.types import Dataset

ABOUT = {
    "source": "scikit-learn load_digits (Alpaydin & Kaynak 1998, UCI)",
    "licence": "CC BY 4.0",
    "examples": "1,797 images of 1 x 8 x 8",
    "clients": "any number, by a partition",
    "split": "the server holds out a random fifth; each client a random share of its own",
    "inputs": "x float32 (n, 1, 8, 8), pixel / 16; y int64 (n,)",
    "labels": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
}


def digits(clients: int = 10, partition: Partition | None = None, test_fraction: float = 0.1, seed: int = 0) -> Dataset:
    """Handwritten digits divided among `clients` (None: at random), 8x8 images in ten classes, no download.

    Raises:
        ConfigError: the partition cannot be made.
        MissingExtra: scikit-learn is absent.

    >>> data = digits(clients=3)
    >>> len(data.clients), len(data.test), data.test.take(torch.tensor([0]))["x"].shape
    (3, 359, torch.Size([1, 1, 8, 8]))
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise missing_extra("scikit-learn", "data", "the digits") from None
    loaded = load_digits()
    whole = {
        "x": torch.from_numpy(loaded.images).float().div_(16).unsqueeze(1),
        "y": torch.from_numpy(loaded.target).long(),
    }
    train, test = held_out(len(whole["y"]), 0.2, seed, "digits")
    return share(
        "digits",
        {name: column[train] for name, column in whole.items()},
        iid() if partition is None else partition,
        clients=clients,
        seed=seed,
        test=Tensors({name: column[test] for name, column in whole.items()}),
        test_fraction=test_fraction,
        about=ABOUT,
    )
