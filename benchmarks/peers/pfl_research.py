"""pfl-research 0.6: SimulatedBackend, in one process or in two that torch.distributed joins.

Its own SGD step on the shared model; users' tensors in memory, shuffled when they are sampled; no evaluation on the way.
With two processes this script starts itself twice with what torchrun would set, which saves torchrun's own start.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from workload import BATCH, EPOCHS, LR, Measured, job, read


def launch(processes: int) -> int:
    """This very command once a rank; the first failure ends all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes), "TORCHELASTIC_RUN_ID": "peers"}
    shared |= {"LOCAL_WORLD_SIZE": str(processes)}
    ranks = [
        subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]
    codes = [rank.wait() for rank in ranks]
    return max(abs(code) for code in codes)


def main() -> None:
    asked = job()
    if asked.variant == "2" and "RANK" not in os.environ:
        raise SystemExit(launch(2))
    measured = Measured(asked)
    torch, plain = measured.importing("torch", "plain")
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    data, workload = read(asked.data), asked.workload

    class Trained(torch.nn.Module):  # type: ignore[name-defined,misc]
        """The model with the two methods that pfl asks for."""

        def __init__(self) -> None:
            super().__init__()
            self.net = plain.model(workload.model)

        def loss(self, x, y):  # type: ignore[no-untyped-def]
            return torch.nn.functional.cross_entropy(self.net(x), y)

        def metrics(self, x, y):  # type: ignore[no-untyped-def]
            return {}

    class Rounds(TrainingProcessCallback):  # type: ignore[misc]
        def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):  # type: ignore[no-untyped-def]
            measured.round_ended()
            return False, Metrics()

    def user(number: int):  # type: ignore[no-untyped-def]
        x, y = plain.client(data, number)
        order = torch.randperm(len(x))
        return PyTorchTensorDataset((x[order], y[order]), user_id=number)

    users = list(range(workload.clients))
    model = Trained()
    wrapped = PyTorchModel(model, torch.optim.SGD, torch.optim.SGD(model.parameters(), lr=1.0))
    federated = FederatedDataset(user, get_user_sampler("random", users))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=asked.rounds,
            evaluation_frequency=float("nan"),  # never: any integer would evaluate in the first round
            train_cohort_size=workload.cohort,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=federated, val_data=federated, postprocessors=[WeightByDatapoints()]),
        wrapped,
        NNTrainHyperParams(local_num_epochs=EPOCHS, local_learning_rate=LR, local_batch_size=BATCH),
        callbacks=[Rounds()],
        send_metrics_to_platform=False,
    )
    if os.environ.get("RANK", "0") == "0":
        measured.write(plain.accuracy(workload.model, model.net.state_dict(), data))
    if "RANK" in os.environ:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
