"""models/units.py: the smaller model computes what the whole one does with the other units silenced."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from atoll.errors import ConfigError, TreeError
from atoll.local.binding import binding
from atoll.models.cnn import cnn
from atoll.models.linear import linear
from atoll.models.lstm import lstm
from atoll.models.mlp import mlp
from atoll.models.transformer import transformer
from atoll.models.units import Kept, Units, alive, cut, grid, held, hidden_units, places, put, scalable, scaling
from atoll.rng import seeded


class Tutorial(nn.Module):
    """A network as beginners write it: layers as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(torch.relu(self.fc1(x)))
        return y


def normed() -> nn.Module:
    with seeded(3):
        body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2))
        model = nn.Sequential(body, nn.Flatten(), nn.Linear(16, 5, bias=False), nn.Dropout(0.0), nn.Linear(5, 2))
    model(torch.randn(8, 1, 4, 4))  # running statistics that are not those of the start
    return model


def pieces() -> nn.Module:
    """A layer over time, then flattened: a unit is every third column."""
    with seeded(4):
        return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))


CASES: dict[str, Any] = {
    "mlp": (lambda: mlp(6, [5, 4], 3), lambda: torch.randn(7, 6)),
    "cnn": (lambda: cnn(1, 9, [4, 6], 3, 5, 3), lambda: torch.randn(3, 1, 9, 9)),
    "normed": (normed, lambda: torch.randn(3, 1, 4, 4)),
    "pieces": (pieces, lambda: torch.randn(3, 4, 2)),
    "transformer": (lambda: transformer(11, 8, 2, 2, 9), lambda: torch.randint(11, (2, 9))),
    "lstm": (lambda: lstm(2, 3, 6, 2), lambda: torch.randn(4, 5, 2)),
    "tutorial": (Tutorial, lambda: torch.randn(4, 5)),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True),
        lambda: torch.randn(2, 5, 8),
    ),
}


def draw(groups: tuple[Units, ...], seed: int, share: float = 0.5) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        group.name: torch.randperm(group.size, generator=g)[: max(1, round(share * group.size))].sort().values for group in groups
    }


def bound(module: nn.Module, values: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The output of a module at other tensors, by the binding that client folds use."""
    at = binding(module)
    at.bind({n: values[n].detach() for n in at.params}, {n: values[n] for n in at.buffers})
    try:
        with torch.no_grad():
            out: Tensor = module(x)
        return out
    finally:
        at.restore()


def silenced(groups: tuple[Units, ...], kept: Kept, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole model with nothing read of the units that are not kept."""
    found = {name: x.clone() for name, x in values.items()}
    for group in groups:
        gone = torch.tensor([u for u in range(group.size) if u not in kept[group.name].tolist()], dtype=torch.int64)
        for axis in group.axes:
            if axis.reads:
                index = places([group._replace(axes=(axis,))], {group.name: gone})[axis.tensor]
                found[axis.tensor][grid(found[axis.tensor].shape, index)] = 0.0
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_a_smaller_model_is_the_whole_one_with_units_silenced(name: str, seed: int) -> None:
    with seeded(seed):
        module, x = CASES[name][0](), CASES[name][1]()
    module.eval()
    groups, values = hidden_units(module), dict(binding(module).state())
    kept = draw(groups, seed)
    small = cut(groups, kept, values)
    assert sum(t.numel() for t in small.values()) < 0.85 * sum(t.numel() for t in values.values())
    torch.testing.assert_close(bound(module, small, x), bound(module, silenced(groups, kept, values), x))


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer", "tutorial"])
def test_scaling_is_inverted_dropout_where_it_is_asked_for(name: str) -> None:
    with seeded(1):
        module, x = CASES[name][0](), CASES[name][1]()
    groups, values = hidden_units(module), dict(binding(module).state())
    kept, plain = draw(groups, 2), bound(module, values, x)
    wanted, small = silenced(groups, kept, values), cut(groups, kept, values)
    for group in groups:
        for axis in group.axes:
            if axis.reads:
                wanted[axis.tensor] *= group.size / len(kept[group.name])
    unscaled = bound(module, small, x)
    scalable(module, groups)
    scalable(module, groups)  # once is enough
    with scaling():
        torch.testing.assert_close(bound(module, small, x), bound(module, wanted, x))
        assert torch.equal(bound(module, values, x), plain), "the whole model is as it was"
    assert torch.equal(bound(module, small, x), unscaled)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "bert", "distilbert"])
def test_feed_forward_blocks_of_pretrained_architectures(name: str) -> None:
    transformers: Any = pytest.importorskip("transformers")
    sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    with seeded(5):
        if name == "llama":
            module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
        elif name == "bert":
            module = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
        else:
            config = transformers.DistilBertConfig(vocab_size=20, dim=8, hidden_dim=12, n_layers=2, n_heads=2)
            module = transformers.DistilBertForSequenceClassification(config)
    module.eval()
    groups, values = hidden_units(module), dict(binding(module).state())
    assert [g.size for g in groups] == [12, 12]
    kept, at, tokens = draw(groups, 1), binding(module), torch.randint(20, (2, 6))
    found = []
    for tensors in (cut(groups, kept, values), silenced(groups, kept, values)):
        at.bind({n: tensors[n] for n in at.params}, {n: tensors[n] for n in at.buffers})
        with torch.no_grad():
            found.append(module(input_ids=tokens).logits)
        at.restore()
    torch.testing.assert_close(*found)


def test_which_groups_there_are() -> None:
    def told(module: nn.Module) -> dict[str, int]:
        return {g.name: g.size for g in hidden_units(module)}

    assert told(mlp()) == {"hidden1": 200, "hidden2": 200}
    assert told(cnn()) == {"conv1": 32, "conv2": 64, "hidden": 512}
    assert told(transformer(layers=1)) == {"blocks.0.up": 256}
    assert told(lstm(hidden=5, layers=2)) == {"lstm.l0": 5, "lstm.l1": 5}
    assert told(normed()) == {"0.0": 4, "2": 5}


def test_a_channel_is_a_span_of_columns_and_a_unit_of_an_lstm_four_rows() -> None:
    groups = hidden_units(cnn(1, 4, [3], 3, 2, 2))  # pooled to 2 x 2 pixels a channel
    assert places(groups, {"conv1": torch.tensor([0, 2])})["hidden.weight"][1].tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    groups = hidden_units(lstm(1, 1, 3))
    assert places(groups, {"lstm.l0": torch.tensor([1])})["lstm.weight_ih_l0"][0].tolist() == [1, 4, 7, 10]


def test_what_has_no_units_is_refused() -> None:
    with pytest.raises(ConfigError, match="no hidden units are known of Linear"):
        hidden_units(linear(3, 1))
    frozen = mlp(4, [3], 2)
    frozen.hidden1.weight.requires_grad_(False)
    with pytest.raises(ConfigError, match="no hidden units"):
        hidden_units(frozen)
    tied = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    tied[2].weight = tied[0].weight
    with pytest.raises(ConfigError, match="no hidden units"):
        hidden_units(tied)


def test_layers_that_mix_units_end_a_group() -> None:
    mixed = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    assert [g.name for g in hidden_units(mixed)] == ["2"]
    image = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Linear(4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    assert [g.name for g in hidden_units(image)] == ["1"], "a dense layer over an image's last axis reads no channels"


@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 1.0))
def test_put_undoes_cut_and_held_says_where(seed: int, share: float) -> None:
    module = cnn(1, 4, [3, 4], 3, 5, 2)
    groups, values = hidden_units(module), dict(binding(module).state())
    kept = draw(groups, seed, share)
    small = cut(groups, kept, values)
    back = put(groups, kept, small, {n: torch.full_like(x, torch.nan) for n, x in values.items()})
    for name, there in held(groups, kept, values).items():
        there = there.expand_as(values[name]) > 0
        assert torch.equal(there, ~back[name].isnan())
        assert torch.equal(back[name][there], values[name][there])


def test_put_refuses_other_shapes() -> None:
    module = mlp(4, [3], 2)
    groups, values = hidden_units(module), dict(binding(module).state())
    kept = {"hidden1": torch.tensor([0, 2])}
    small = {**cut(groups, kept, values), "output.weight": torch.zeros(2, 3)}
    with pytest.raises(TreeError, match=r"output.weight of a smaller model is \(2, 3\); .* it is \(2, 2\)"):
        put(groups, kept, small, copy.deepcopy(values))


@pytest.mark.parametrize("name", ["mlp", "cnn", "normed", "pieces", "transformer", "lstm"])
@pytest.mark.parametrize("seed", range(3))
def test_what_no_mask_reads_can_go(name: str, seed: int) -> None:
    """Random masks of few entries: the model without its dead units computes what the masked one does."""
    with seeded(seed):
        module, x = CASES[name][0](), CASES[name][1]()
        values = dict(binding(module).state())
        masks = {n: torch.rand(p.shape) < (0.02 if name == "lstm" else 0.12) for n, p in module.named_parameters() if p.dim() > 1}
    module.eval()
    values = {n: v * masks[n] if n in masks else v for n, v in values.items()}
    groups = hidden_units(module)
    kept = alive(groups, masks)
    assert any(len(kept[g.name]) < g.size for g in groups), "none is dead: the test shows nothing"
    torch.testing.assert_close(bound(module, cut(groups, kept, values), x), bound(module, values, x))


def test_death_spreads_backwards() -> None:
    module = mlp(2, [2, 2], 1)
    masks = {
        "hidden1.weight": torch.ones(2, 2, dtype=torch.bool),
        "hidden2.weight": torch.tensor([[True, False], [True, True]]),
        "output.weight": torch.tensor(
            [[True, False]]
        ),  # nobody reads the second of hidden2, which alone reads the second of hidden1
    }
    assert {n: x.tolist() for n, x in alive(hidden_units(module), masks).items()} == {"hidden1": [0], "hidden2": [0]}
    nothing = {n: torch.zeros_like(x) for n, x in masks.items()}
    assert {n: x.tolist() for n, x in alive(hidden_units(module), nothing).items()} == {"hidden1": [0], "hidden2": [0]}
    assert masks["hidden1.weight"].all(), "the masks given stay as they are"
