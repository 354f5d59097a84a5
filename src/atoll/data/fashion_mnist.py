"""Fashion-MNIST: 70,000 grey images of clothes in ten classes (Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747)."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atoll import rng
from atoll.data.clients import share
from atoll.data.examples import Tensors
from atoll.data.fetch import fetch
from atoll.data.packages import FASHION_MNIST
from atoll.data.partition.iid import iid
from atoll.data.partition.parts import Partition
from atoll.errors import ConfigError, DataError
from atoll.types import Dataset

ABOUT = {
    "source": "Debian package dataset-fashion-mnist (Xiao et al. 2017)",
    "licence": "MIT",
    "examples": "60,000 train and 10,000 test images of 1 x 28 x 28",
    "clients": "any number, by a partition",
    "split": "the server holds the 10,000 test images; each client a random share of its own",
    "inputs": "x float32 (n, 1, 28, 28), (pixel / 255 - 0.2860) / 0.3530; y int64 (n,)",
    "labels": ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"],
}


def fashion_mnist(
    clients: int = 10,
    partition: Partition | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
) -> Dataset:
    """Fashion-MNIST divided among `clients` (None: at random), 28x28 images of clothes in ten classes.

    `limit` keeps that many training images, drawn at random, and the same share of the server's test images.

    Raises:
        FetchError: it could not be fetched.
        ConfigError: limit is outside 1 to 60,000, or the partition cannot be made.

    >>> data = fashion_mnist(clients=2, limit=100)  # doctest: +SKIP
    """
    folder = fetch(FASHION_MNIST) / "usr/share/datasets/fashion-mnist"
    train, test = _read(folder, "train"), _read(folder, "t10k")
    if limit is not None:
        count = len(train["y"])
        if not 1 <= limit <= count:
            raise ConfigError(f"limit is {limit}, but must be from 1 to {count}, the number of training images.")
        train = {name: column[rng.permutation(count, seed, "limit")[:limit]] for name, column in train.items()}
        test = {name: column[: max(1, len(column) * limit // count)] for name, column in test.items()}
    return share(
        "fashion_mnist",
        train,
        iid() if partition is None else partition,
        clients=clients,
        seed=seed,
        test=Tensors(test),
        test_fraction=test_fraction,
        about=ABOUT,
    )


def _read(folder: Path, split: str) -> dict[str, Tensor]:
    images = idx(folder / f"{split}-images-idx3-ubyte.gz")
    labels = idx(folder / f"{split}-labels-idx1-ubyte.gz")
    return {"x": images.unsqueeze(1).float().div_(255).sub_(0.2860).div_(0.3530), "y": labels.long()}


def idx(path: Path) -> Tensor:
    """A gzipped file of the IDX format (LeCun et al. 1998, the files of MNIST) as uint8.

    Raises:
        DataError: the file is not of that format.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}; delete its folder, and it is fetched anew.") from error
    dims = content[3] if len(content) > 4 else 0
    start = 4 + 4 * dims  # zero, zero, 0x08 for uint8, number of axes; then each axis as a big-endian int32
    shape = np.frombuffer(content[4:start], dtype=">i4").tolist() if content[:3] == b"\x00\x00\x08" else []
    if not shape or len(content) - start != int(np.prod(shape)):
        raise DataError(
            f"{path} is not an IDX file of bytes: its first four bytes are {content[:4].hex()}, its length {len(content)}."
        )
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy())
