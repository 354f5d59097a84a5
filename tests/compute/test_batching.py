"""What vmap is told: each operation over several clients gives what it gives client by client."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from atoll.compute.batching import batched
from atoll.compute.record import record

aten = torch.ops.aten
DRAW = torch.Generator().manual_seed(3)
LOGS = torch.randn(3, 6, 5, generator=DRAW).log_softmax(-1)  # clients, examples, classes
TARGETS = torch.randint(5, (3, 6), generator=DRAW)
TARGETS[1, 2] = TARGETS[2, :4] = -100  # ignored


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0])])
@pytest.mark.parametrize("reduction", [0, 1, 2])  # none, mean, sum
def test_a_loss_over_clients_is_that_of_each(reduction: int, weight: Tensor | None) -> None:
    def step(loss: Tensor, gradient: Tensor, logs: Tensor, targets: Tensor) -> None:
        value, total = aten.nll_loss_forward.default(logs, targets, weight, reduction, -100)
        loss.copy_(value)
        gradient.copy_(aten.nll_loss_backward.default(value.exp(), logs, targets, weight, reduction, -100, total))

    one = torch.zeros(6 if reduction == 0 else ()), torch.zeros(6, 5)
    inputs = [*one, LOGS[0], TARGETS[0]]
    seen = record(lambda: step(*inputs), inputs)
    together = torch.zeros(3, *one[0].shape), torch.zeros(3, 6, 5)
    batched(seen.graph, len(seen.constants))(*together, LOGS, TARGETS, *seen.constants)
    for i in range(3):
        step(*one, LOGS[i], TARGETS[i])
        torch.testing.assert_close(together[0][i], one[0])
        torch.testing.assert_close(together[1][i], one[1])
        assert one[1].count_nonzero() > 0
