"""The one file that every system reads: Fashion-MNIST's 60,000 training images dealt evenly, and its 10,000 test images."""

from __future__ import annotations

import os
from pathlib import Path


def images(clients: int, folder: Path) -> Path:
    """The file for that many clients, written once by Atoll's own reader of the data set and its `iid` partition."""
    path = folder / f"fashion-mnist-{clients}.safetensors"
    if path.is_file():
        return path
    import torch
    from safetensors.torch import save_file

    from atoll.data.fashion_mnist import fashion_mnist
    from atoll.data.partition.iid import iid

    data = fashion_mnist(clients=clients, partition=iid(), test_fraction=0.0)
    assert data.test is not None
    held = [splits["train"] for _, splits in sorted(data.clients.items())]
    whole = [examples.take(torch.arange(len(examples))) for examples in held]
    test = data.test.take(torch.arange(len(data.test)))
    columns = {name: torch.stack([batch[name] for batch in whole]) for name in ("x", "y")}  # equal sizes: clients divide 60,000
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    save_file({**columns, "test_x": test["x"].contiguous(), "test_y": test["y"].contiguous()}, partial)
    partial.replace(path)
    return path
