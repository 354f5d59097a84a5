"""Tasks for one's own data: losses by hand, the textbook's regression, and capture as a graph."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from atoll.errors import ConfigError, DataError
from atoll.models.cnn import cnn
from atoll.models.linear import linear
from atoll.models.lstm import lstm
from atoll.models.mlp import mlp
from atoll.models.transformer import transformer
from atoll.tasks.classification import classification
from atoll.tasks.custom import custom
from atoll.tasks.forecast import forecast
from atoll.tasks.next_token import next_token
from atoll.tasks.regression import regression


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


IMAGES = {"x": draw(4, 1, 8, 8), "y": torch.tensor([0, 1, 2, 2])}
TASKS = [
    (classification(mlp(64, [5], 3)), IMAGES),
    (classification(cnn(size=8, filters=[2, 3], kernel=3, hidden=4, outputs=3)), IMAGES),
    (regression(linear(3, 2)), {"x": draw(5, 3), "y": draw(5, 2)}),
    (forecast(lstm(2, 3, 4, 2)), {"x": draw(5, 6, 2), "y": draw(5, 3)}),
    (next_token(transformer(12, 8, 2, 2, 16)), {"input_ids": torch.arange(10).view(2, 5)}),
]


@pytest.mark.parametrize(("task", "batch"), TASKS, ids=lambda x: getattr(x, "about", ""))
def test_captured_as_a_graph_it_gives_the_same_gradient(task, batch, gradient, plain):
    params = plain(task.module)

    def step(params, batch):
        params = {name: x.detach().requires_grad_() for name, x in params.items()}
        return gradient(task, batch, params)

    wanted_loss, wanted = gradient(task, batch, params)
    assert all(g.abs().sum() > 0 for g in wanted)
    graph = make_fx(step)(params, batch)
    loss, grads = graph(params, batch)
    torch.testing.assert_close(loss, wanted_loss)
    torch.testing.assert_close(list(grads), list(wanted))


@pytest.mark.parametrize(("task", "batch"), TASKS, ids=lambda x: getattr(x, "about", ""))
def test_means_weighted_by_count_are_the_mean_of_the_whole(task, batch):
    """What evaluation relies on when it adds batches and clients up."""
    parts = [{name: x[at] for name, x in batch.items()} for at in (slice(0, 1), slice(1, None))]
    for measure in (task.loss, *task.metrics.values()):
        whole = measure(task.forward(task.module, batch), batch)
        total = sum(task.count(b) * measure(task.forward(task.module, b), b) for b in parts)
        torch.testing.assert_close(total / task.count(batch), whole)


def test_gradient_descent_on_the_multivariate_linear_model_reaches_the_normal_equations():
    """Hastie, Tibshirani, Friedman 2009, eq. 3.39: B = (X'X)^-1 X'Y."""
    x, noise = draw(40, 3), draw(40, 2)
    y = x @ torch.tensor([[1.0, -2.0], [0.5, 0.0], [3.0, 1.0]]) + torch.tensor([4.0, -1.0]) + 0.1 * noise
    design = torch.cat([x, torch.ones(40, 1)], 1)
    wanted = torch.linalg.solve(design.T @ design, design.T @ y)
    task = regression(linear(3, 2))
    for _ in range(400):
        loss = task.loss(task.forward(task.module, {"x": x}), {"x": x, "y": y})
        with torch.no_grad():
            for p, g in zip(task.module.parameters(), torch.autograd.grad(loss, list(task.module.parameters())), strict=True):
                p -= 0.5 * g
    torch.testing.assert_close(torch.cat([task.module.weight.T, task.module.bias[None]]), wanted, atol=1e-4, rtol=1e-4)


def test_regression_by_hand():
    task = regression(linear(1, 1))
    outputs, batch = torch.tensor([[1.0], [4.0]]), {"y": torch.tensor([2, 1])}  # errors -1 and 3
    assert task.loss(outputs, batch) == 5
    assert task.metrics["mae"](outputs, batch) == 2


def test_classification_by_hand():
    task = classification(linear(1, 2), forward=lambda module, batch: module(batch["z"]))
    logits, batch = torch.tensor([[0.0, 0.0], [9.0, 0.0]]), {"y": torch.tensor([1, 0])}
    assert task.loss(logits, batch).item() == pytest.approx((0.693147 + 0.000123) / 2, abs=1e-5)
    assert task.metrics["accuracy"](logits, batch) == 0.5
    assert task.forward(task.module, {"z": torch.zeros(3, 1)}).shape == (3, 2)


def test_a_batch_that_does_not_fit_says_what_it_holds():
    with pytest.raises(DataError, match="reads 'x', but the data set's batches hold input_ids"):
        TASKS[0][0].forward(TASKS[0][0].module, {"input_ids": torch.zeros(1, 2)})


def test_custom_refuses_what_is_not_one_number():
    task = custom(nn.Linear(1, 1), lambda outputs, batch: (outputs - batch["y"]) ** 2, {"max": lambda outputs, batch: 1.0})
    batch = {"x": torch.zeros(2, 1), "y": torch.zeros(2, 1)}
    outputs = task.forward(task.module, batch)
    with pytest.raises(ConfigError, match=r"loss gave shape \(2, 1\): it must be a 0-d tensor"):
        task.loss(outputs, batch)
    with pytest.raises(ConfigError, match="metric 'max' gave float"):
        task.metrics["max"](outputs, batch)
    with pytest.raises(ConfigError, match="nothing to train"):
        custom(nn.ReLU(), lambda outputs, batch: outputs.sum())
