"""Atoll: FedAvg over an engine and a way to compute, as `Federation` would put them together, without evaluation.

The variant is ENGINE-COMPUTE: "processes-eager" (two workers), "serial-traced", ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workload import BATCH, EPOCHS, LR, Data, Measured, job, read

if TYPE_CHECKING:
    from atoll.types import Dataset

WORKERS = 2


def main() -> None:
    asked = job()
    measured = Measured(asked)
    measured.importing("torch")
    from atoll.algorithms.fedavg import fedavg
    from atoll.federation import Federation
    from atoll.local.sgd import sgd
    from atoll.models.cnn import cnn
    from atoll.models.mlp import mlp
    from atoll.policy import synchronous
    from atoll.tasks.classification import classification

    data, workload = read(asked.data), asked.workload
    engine, compute = asked.variant.split("-")
    options: dict[str, Any] = {"workers": WORKERS} if engine == "processes" else {}
    if compute != "eager":
        options["compute"] = compute
    task = classification(mlp() if workload.model == "mlp" else cnn())
    federation = Federation(
        task,
        dataset(data),
        fedavg(sgd(task, lr=LR, batch_size=BATCH, epochs=EPOCHS)),
        policy=synchronous(workload.cohort),
        engine=engine,
        engine_options=options,
        evaluate_every=0,
    )
    result = federation.run(asked.rounds, each_round=lambda number, params: measured.round_ended())
    measured.write(accuracy(data, workload.model, result.params))


def dataset(data: Data) -> Dataset:
    """The clients of the file, views of its pages."""
    import torch

    from atoll.data.examples import Tensors
    from atoll.types import ClientId, Dataset

    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    width = len(str(len(x) - 1))
    held = {ClientId(f"client-{k:0{width}d}"): {"train": Tensors({"x": x[k], "y": y[k]})} for k in range(len(x))}
    return Dataset("peers", held, None)


def accuracy(data: Data, model: str, params: Any) -> float:
    """The share of the test images that the model labels rightly; its layers have the names of plain.py's."""
    import plain

    return plain.accuracy(model, params, data)


if __name__ == "__main__":
    main()
