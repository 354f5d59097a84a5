"""What the models compute, where it can be said by hand."""

import torch
from torch import nn

from atoll.models.lstm import lstm
from atoll.models.transformer import transformer


def test_lstm_is_torch_s_lstm_and_a_linear_head():
    module = lstm(features=2, horizon=3, hidden=5, layers=2)
    x = torch.randn(4, 6, 2)
    outputs, _ = module.lstm(x)
    torch.testing.assert_close(module(x), module.head(outputs[:, -1]))


def test_lstm_computes_with_the_parameters_bound_by_name():
    """A fold binds tensors into `_parameters`; nn.LSTM.forward would read the old ones."""
    module = lstm(features=1, horizon=1, hidden=3)
    bound = {name: torch.zeros_like(p, requires_grad=True) for name, p in module.named_parameters()}
    for name, x in bound.items():
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner)._parameters[leaf] = x
    y = module(torch.ones(2, 4, 1))
    assert torch.equal(y, torch.zeros(2, 1))
    assert all(g is not None for g in torch.autograd.grad(y.sum(), list(bound.values())))


def test_transformer_does_not_see_what_comes_after():
    module = transformer(vocabulary=10, width=8, layers=2, heads=2, context=6)
    tokens = torch.tensor([[1, 2, 3, 4]])
    changed = torch.tensor([[1, 2, 3, 9]])
    torch.testing.assert_close(module(tokens)[:, :3], module(changed)[:, :3])
    assert isinstance(module, nn.Module)
    assert not torch.allclose(module(tokens)[:, 3], module(changed)[:, 3])
