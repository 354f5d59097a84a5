"""Flower 1.41 as it is deployed: the ServerApp and ClientApp that `flower_network.py` gives to a superlink and its supernodes.

Its FedAvg over messages, federated evaluation off; data, first parameters and what comes out are files in one folder.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn
from torch.nn import functional

SITES, LR = 4, 0.1
client = ClientApp()
server = ServerApp()


def model(params: dict[str, torch.Tensor]) -> nn.Module:
    """Three layers with ReLU between, of these parameters."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, name in enumerate(("hidden1", "hidden2", "output")):
        after, before = params[f"{name}.weight"].shape
        layers |= {f"relu{i}": nn.ReLU()} if i else {}
        layers[name] = nn.Linear(before, after)
    module = nn.Sequential(layers)
    module.load_state_dict(params)
    return module


@client.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """One step of gradient descent on all that the site holds."""
    torch.set_num_threads(1)
    held = torch.load(Path(str(context.run_config["folder"])) / f"site-{context.node_config['partition-id']}.pt")
    module = model(message.content["arrays"].to_torch_state_dict())
    optimiser = torch.optim.SGD(module.parameters(), lr=LR)
    functional.cross_entropy(module(held["x"]), held["y"]).backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    answer = {"arrays": ArrayRecord(module.state_dict()), "metrics": MetricRecord({"num-examples": len(held["x"])})}
    return Message(content=RecordDict(answer), reply_to=message)


@server.main()  # type: ignore[untyped-decorator]
def serve(grid: Any, context: Context) -> None:
    """All rounds; the moments at which they ended, and the last parameters, go to the folder."""
    folder, ends_s = Path(str(context.run_config["folder"])), list[float]()

    def clock(number: int, arrays: Any) -> None:
        if number:  # zero is the initial model
            ends_s.append(time.monotonic())

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=SITES, min_available_nodes=SITES)
    initial = ArrayRecord(torch.load(folder / "first.pt"))
    result = strategy.start(grid, initial, num_rounds=int(context.run_config["rounds"]), evaluate_fn=clock)
    torch.save(result.arrays.to_torch_state_dict(), folder / "last.pt")
    heard = len(result.train_metrics_clientapp)  # a round whose clients all failed leaves none, and goes on
    (folder / "said.json").write_text(json.dumps({"ends_s": ends_s, "heard": heard}))
