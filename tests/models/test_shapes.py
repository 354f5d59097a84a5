"""models/shapes.py says without torch what each factory's state is."""

import inspect
import subprocess
import sys

import pytest
import torch

from atoll.errors import ConfigError
from atoll.models import shapes
from atoll.models.cnn import cnn
from atoll.models.linear import linear
from atoll.models.lstm import lstm
from atoll.models.mlp import mlp
from atoll.models.transformer import transformer

CASES = [
    (linear, {}),
    (linear, {"inputs": 5, "outputs": 3, "bias": False}),
    (mlp, {}),
    (mlp, {"inputs": 12, "hidden": [7], "outputs": 3}),
    (mlp, {"inputs": 12, "hidden": [], "outputs": 3}),
    (cnn, {}),
    (cnn, {"channels": 3, "size": 33, "filters": [4, 5, 6], "kernel": 3, "hidden": 9, "outputs": 2}),
    (lstm, {}),
    (lstm, {"features": 2, "horizon": 7, "hidden": 5, "layers": 3}),
    (transformer, {}),
    (transformer, {"vocabulary": 11, "width": 6, "layers": 1, "heads": 3, "context": 9}),
]


@pytest.mark.parametrize(("factory", "arguments"), CASES)
def test_shapes_are_those_of_the_state(factory, arguments):
    state = factory(**arguments).state_dict()
    assert getattr(shapes, factory.__name__)(**arguments) == {name: tuple(x.shape) for name, x in state.items()}
    assert list(getattr(shapes, factory.__name__)(**arguments)) == list(state)


@pytest.mark.parametrize("factory", [linear, mlp, cnn, lstm, transformer])
def test_shapes_take_the_factory_s_arguments(factory):
    ours, theirs = (inspect.signature(f).parameters for f in (getattr(shapes, factory.__name__), factory))
    assert {name: p.default for name, p in ours.items()} == {name: p.default for name, p in theirs.items()}


def test_published_sizes():
    """McMahan et al. 2017 give 199,210 for the 2NN and 1,663,370 for the CNN."""
    assert shapes.count(shapes.mlp()) == 199_210
    assert shapes.count(shapes.cnn()) == 1_663_370


def test_smollm2_has_135_million():
    assert shapes.count(shapes.llama(49152, 576, 30, 9, 3, 1536, tied=True)) == 134_515_008


def test_no_torch_is_imported():
    code = "import sys, atoll.models.shapes, atoll.models.header; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("factory", [linear, mlp, cnn, lstm, transformer])
def test_initialisation_depends_on_its_seed_alone(factory):
    before = torch.get_rng_state()
    first = factory(seed=3).state_dict()
    torch.rand(5)
    assert all(torch.equal(first[name], x) for name, x in factory(seed=3).state_dict().items())
    other = factory(seed=4).state_dict()
    assert any(not torch.equal(first[name], x) for name, x in other.items())
    torch.set_rng_state(before)
    factory(seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ConfigError, match="odd kernels only, such as 5"):
        cnn(kernel=4)
    with pytest.raises(ConfigError, match="fewer filters"):
        cnn(size=8, filters=[1, 1, 1, 1])
    with pytest.raises(ConfigError, match="multiple of 3 heads"):
        transformer(width=64, heads=3)


def test_lora_without_a_matching_layer_names_those_that_exist():
    with pytest.raises(ConfigError, match="no layer called 'q'; give targets among: hidden1, hidden2, output"):
        shapes.lora(shapes.mlp(), targets=["q"])
    with pytest.raises(ConfigError, match="name the adapter's targets"):
        shapes.lora(shapes.mlp())
