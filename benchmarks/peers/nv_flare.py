"""NVFlare 2.9: its simulator and FedAvg recipe, one resident client process a member of the cohort, tensors as they are.

A hundred resident clients would take tens of gigabytes, so ten sites stand for the cohort: in each round site i trains on
the i-th of the clients drawn for that round, which saves NVFlare all cost of those who are not asked. One round more than
asked is run, in which nobody trains: a round ends when the first site has the next model, and that model is judged.

Sites ask for their next task every two seconds; with the variant "fast-poll" every 50 ms.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
from workload import Measured, job, read

# This script is also what each site runs, and this in its environment is what it was asked: NVFlare splits arguments at blanks.
ASKED = "PEERS_NV_FLARE"
POLL_S = 0.05


def server() -> None:
    """Describe the job and run it in the simulator, in the working folder."""
    asked = job()
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
    from nvflare.client.config import ExchangeFormat
    from nvflare.recipe.sim_env import SimEnv
    from plain import model

    os.environ[ASKED] = json.dumps([*sys.argv, "--began", str(asked.began)])
    recipe = FedAvgRecipe(
        name="peers",
        model=model(asked.workload.model),
        min_clients=asked.workload.cohort,
        num_rounds=asked.rounds + 1,
        train_script=str(Path(__file__).resolve()),
        server_expected_format=ExchangeFormat.PYTORCH,
    )
    if asked.variant == "fast-poll":
        recipe.add_server_config({"server": {"task_request_interval": POLL_S}})
        recipe.add_client_config({"default_task_fetch_interval": POLL_S})
    size = asked.workload.cohort
    recipe.run(SimEnv(num_clients=size, num_threads=size, workspace_root=str(Path.cwd())))


def site() -> None:
    """What a site does until the job ends; the first one measures."""
    sys.argv = json.loads(os.environ[ASKED])
    asked = job()
    measured = Measured(asked)
    torch, plain = measured.importing("torch", "plain")
    import nvflare.client as flare

    flare.init()
    own = int(flare.get_site_name().removeprefix("site-")) - 1
    data, workload = read(asked.data), asked.workload
    module = plain.resident(workload.model)
    torch.manual_seed(own)
    number = 0
    while flare.is_running() and (received := flare.receive()) is not None:
        if number and own == 0:
            measured.round_ended()
        module.load_state_dict(received.params)
        examples = 0
        if number < asked.rounds:
            cohort = np.random.RandomState(number).permutation(workload.clients)[: workload.cohort]
            x, y = plain.client(data, int(cohort[own]))
            plain.train(module, x, y)
            examples = len(x)
        elif own == 0:
            measured.write(plain.accuracy(workload.model, received.params, data))
        steps = {"NUM_STEPS_CURRENT_ROUND": max(examples, 1)}
        flare.send(flare.FLModel(params=dict(module.state_dict()), meta=steps))
        number += 1


if __name__ == "__main__":
    site() if ASKED in os.environ else server()
