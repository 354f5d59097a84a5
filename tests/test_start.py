"""What a first round imports beyond torch: nothing of the stores, the reports or torch's compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import torch

before = set(sys.modules)
from atoll.algorithms.fedavg import fedavg
from atoll.data.examples import Tensors
from atoll.federation import Federation
from atoll.local.sgd import sgd
from atoll.models.mlp import mlp
from atoll.tasks.classification import classification
from atoll.types import ClientId, Dataset

engine, compute = sys.argv[1:]
clients = {ClientId(f"c{i}"): {"train": Tensors({"x": torch.randn(12, 4), "y": torch.randint(3, (12,))})} for i in range(4)}
task = classification(mlp(4, [5], 3))
federation = Federation(
    task, Dataset("made", clients, None), fedavg(sgd(task, batch_size=4)), engine=engine, engine_options={"compute": compute}
)
federation.run(2)
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}), *sorted(set(sys.modules) - before))
"""
ALLOWED = {"atoll", "safetensors", "torch"}
FORBIDDEN = ("torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes", "torch.optim", "sqlalchemy", "sympy")


@pytest.mark.parametrize(("engine", "compute"), [("serial", "eager"), ("serial", "stacked"), ("processes", "traced")])
def test_a_first_round_imports_little(engine: str, compute: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, engine, compute], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = set(done.stdout.split())
    packages = {name for name in found if "." not in name} - set(sys.stdlib_module_names) - ALLOWED
    assert not packages, f"a first round imports {sorted(packages)}: under TYPE_CHECKING, or in the function that needs it"
    assert not found.intersection(FORBIDDEN), f"a first round imports {sorted(found.intersection(FORBIDDEN))}"
