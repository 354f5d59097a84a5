"""Flower 1.41: its simulation runtime on Ray, two actors of one CPU each, federated evaluation off, no dashboard.

The strategy is its FedAvg over messages; `evaluate_fn`, which it calls after each round, only looks at the clock.
"""

from __future__ import annotations

from typing import Any

from workload import Measured, job, read

ACTORS = 2


def main() -> None:
    asked = job()
    measured = Measured(asked)
    torch, plain = measured.importing("torch", "plain")
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    torch.manual_seed(0)
    workload, path = asked.workload, asked.data
    client, server = ClientApp(), ServerApp()

    @client.train()  # type: ignore[untyped-decorator]
    def train(message: Message, context: Context) -> Message:
        import plain

        module = plain.resident(workload.model)
        module.load_state_dict(message.content["arrays"].to_torch_state_dict())
        x, y = plain.client(read(path), int(context.node_config["partition-id"]))
        plain.train(module, x, y)
        answer = {"arrays": ArrayRecord(module.state_dict()), "metrics": MetricRecord({"num-examples": len(x)})}
        return Message(content=RecordDict(answer), reply_to=message)

    def clock(number: int, arrays: Any) -> None:
        if number:  # zero is the initial model
            measured.round_ended()

    @server.main()  # type: ignore[untyped-decorator]
    def serve(grid: Any, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=workload.cohort / workload.clients, fraction_evaluate=0.0, min_available_nodes=workload.clients
        )
        initial = ArrayRecord(plain.model(workload.model).state_dict())
        result = strategy.start(grid, initial, num_rounds=asked.rounds, evaluate_fn=clock)
        heard = len(result.train_metrics_clientapp)  # a round whose clients all failed leaves none, and goes on
        assert heard == asked.rounds, f"clients answered in {heard} of {asked.rounds} rounds"
        accuracy = plain.accuracy(workload.model, result.arrays.to_torch_state_dict(), read(path))
        measured.write(accuracy)

    backend = {
        "init_args": {"num_cpus": ACTORS, "num_gpus": 0, "include_dashboard": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    run_simulation(server, client, num_supernodes=workload.clients, backend_config=backend)


if __name__ == "__main__":
    main()
