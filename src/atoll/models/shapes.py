"""The shapes of each model's state, from the arguments of its factory and without importing torch.

`atoll check` counts bytes with these. A test holds each function to the `state_dict` of the factory of its name.
Names and order are those of the real module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any

from atoll.errors import ConfigError

Shapes = dict[str, tuple[int, ...]]

# Where LoRA goes when no targets are given: queries and values, as in Hu et al. 2021, section 7.1, by whatever name
# the architecture has for them. The first pair of which all are present is taken.
QUERY_AND_VALUE = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q_lin", "v_lin"),
    ("q", "v"),
    ("query_key_value",),
    ("c_attn",),
    ("qkv",),
)
# Arguments that are numbers of hidden units.
_HIDDEN: Mapping[str, tuple[str, ...]] = {
    "mlp": ("hidden",),
    "cnn": ("filters", "hidden"),
    "lstm": ("hidden",),
    "transformer": (),
}
_CONV1D = {"c_attn", "c_fc", "c_proj"}  # GPT-2 keeps these as (inputs, outputs)


def count(shapes: Mapping[str, Sequence[int]]) -> int:
    """The number of elements of all tensors.

    >>> count(mlp())
    199210
    """
    return sum(prod(shape) for shape in shapes.values())


def linear(inputs: int = 1, outputs: int = 1, bias: bool = True, seed: int = 0) -> Shapes:
    """State of `models.linear`."""
    return _dense("", inputs, outputs, bias)


def mlp(inputs: int = 784, hidden: Sequence[int] = (200, 200), outputs: int = 10, seed: int = 0) -> Shapes:
    """State of `models.mlp`."""
    shapes: Shapes = {}
    for i, (before, after) in enumerate(pairwise((inputs, *hidden)), start=1):
        shapes |= _dense(f"hidden{i}.", before, after)
    return shapes | _dense("output.", (inputs, *hidden)[-1], outputs)


def cnn(
    channels: int = 1,
    size: int = 28,
    filters: Sequence[int] = (32, 64),
    kernel: int = 5,
    hidden: int = 512,
    outputs: int = 10,
    seed: int = 0,
) -> Shapes:
    """State of `models.cnn`."""
    shapes: Shapes = {}
    for i, (before, after) in enumerate(pairwise((channels, *filters)), start=1):
        shapes |= {f"conv{i}.weight": (after, before, kernel, kernel), f"conv{i}.bias": (after,)}
    side = size // 2 ** len(filters)
    return shapes | _dense("hidden.", (channels, *filters)[-1] * side * side, hidden) | _dense("output.", hidden, outputs)


def lstm(features: int = 1, horizon: int = 1, hidden: int = 32, layers: int = 1, seed: int = 0) -> Shapes:
    """State of `models.lstm`."""
    shapes: Shapes = {}
    for i in range(layers):
        inputs = hidden if i else features
        shapes |= {f"lstm.weight_ih_l{i}": (4 * hidden, inputs), f"lstm.weight_hh_l{i}": (4 * hidden, hidden)}
        shapes |= {f"lstm.bias_ih_l{i}": (4 * hidden,), f"lstm.bias_hh_l{i}": (4 * hidden,)}
    return shapes | _dense("head.", hidden, horizon)


def transformer(
    vocabulary: int = 128, width: int = 64, layers: int = 2, heads: int = 4, context: int = 128, seed: int = 0
) -> Shapes:
    """State of `models.transformer`."""
    shapes: Shapes = {"token.weight": (vocabulary, width), "position.weight": (context, width)}
    for i in range(layers):
        at = f"blocks.{i}."
        shapes |= _norm(f"{at}norm1.", width)
        shapes |= _dense(f"{at}qkv.", width, 3 * width, False) | _dense(f"{at}mix.", width, width, False)
        shapes |= _norm(f"{at}norm2.", width)
        shapes |= _dense(f"{at}up.", width, 4 * width) | _dense(f"{at}down.", 4 * width, width)
    return shapes | _norm("norm.", width) | _dense("output.", width, vocabulary, False)


def present(size: int, keep: float) -> int:
    """How many of a layer's hidden units are in a smaller model: the nearest number, one at least.

    >>> present(10, 0.25), present(3, 0.1)
    (2, 1)
    """
    return max(1, round(keep * size))


def narrowed(model: str, arguments: Mapping[str, Any], keep: float) -> Shapes:
    """State of the model of that name with so much of its hidden units, as `models.units` cuts it.

    Raises:
        ConfigError: it has no hidden units, or they are not known here.

    >>> narrowed("mlp", {"inputs": 4, "hidden": [6], "outputs": 2}, 0.5)["output.weight"]
    (2, 3)
    """
    if model not in _HIDDEN:
        raise ConfigError(f"the hidden units of {model} are known once it is built")
    of: Callable[..., Shapes] = globals()[model]
    given = {name: each.default for name, each in inspect.signature(of).parameters.items()} | dict(arguments)
    for name in _HIDDEN[model]:
        size = given[name]
        given[name] = present(size, keep) if isinstance(size, int) else [present(n, keep) for n in size]
    shapes = of(**given)
    for name, shape in shapes.items() if model == "transformer" else ():
        inner = present(4 * given["width"], keep)  # the width itself is what blocks pass on to each other
        if ".up." in name:
            shapes[name] = (inner, *shape[1:])
        elif name.endswith(".down.weight"):
            shapes[name] = (shape[0], inner)
    return shapes


def llama(vocabulary: int, width: int, layers: int, heads: int, key_heads: int, inner: int, tied: bool) -> Shapes:
    """Parameters of a Hugging Face `LlamaForCausalLM`, for a model that is known but not fetched yet."""
    head = width // heads
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, width)}
    for i in range(layers):
        at = f"model.layers.{i}."
        for name, rows in (("q", heads), ("k", key_heads), ("v", key_heads)):
            shapes |= {f"{at}self_attn.{name}_proj.weight": (rows * head, width)}
        shapes |= {f"{at}self_attn.o_proj.weight": (width, heads * head)}
        shapes |= {f"{at}mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{at}{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (width,)}
    return shapes if tied else shapes | {"lm_head.weight": (vocabulary, width)}


def bert(vocabulary: int, width: int, layers: int, inner: int, context: int, types: int = 2) -> Shapes:
    """Parameters of a Hugging Face `BertModel` with its pooler, for a model that is known but not fetched yet."""
    shapes: Shapes = {}
    for name, rows in (("word", vocabulary), ("position", context), ("token_type", types)):
        shapes |= {f"embeddings.{name}_embeddings.weight": (rows, width)}
    shapes |= _norm("embeddings.LayerNorm.", width)
    for i in range(layers):
        at = f"encoder.layer.{i}."
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _dense(f"{at}attention.{name}.", width, width)
        shapes |= _norm(f"{at}attention.output.LayerNorm.", width)
        shapes |= _dense(f"{at}intermediate.dense.", width, inner) | _dense(f"{at}output.dense.", inner, width)
        shapes |= _norm(f"{at}output.LayerNorm.", width)
    return shapes | _dense("pooler.dense.", width, width)


def lora(base: Mapping[str, Sequence[int]], rank: int = 8, targets: Sequence[str] | None = None) -> Shapes:
    """Shapes of a LoRA adapter (Hu et al. 2021) as PEFT names its trainable tensors, from the base's names and shapes.

    Raises:
        ConfigError: no linear layer of the base bears a target's name.

    >>> lora({"q_proj.weight": (6, 4), "v_proj.weight": (2, 4)}, rank=1)["base_model.model.q_proj.lora_B.default.weight"]
    (6, 1)
    """
    wanted = tuple(targets) if targets is not None else query_and_value(base)
    shapes: Shapes = {}
    for name, shape in base.items():
        layer = name.removesuffix(".weight")
        if layer == name or len(shape) != 2 or not named(layer, wanted):
            continue
        rows, columns = reversed(shape) if layer.rpartition(".")[2] in _CONV1D else shape
        shapes[f"base_model.model.{layer}.lora_A.default.weight"] = (rank, columns)
        shapes[f"base_model.model.{layer}.lora_B.default.weight"] = (rows, rank)
    if not shapes:
        last = sorted({name.removesuffix(".weight").rpartition(".")[2] for name, shape in base.items() if len(shape) == 2})
        raise ConfigError(
            f"the model has no layer called {' or '.join(map(repr, wanted))}; give targets among: {', '.join(last)}."
        )
    return shapes


def query_and_value(names: Mapping[str, object] | Sequence[str]) -> tuple[str, ...]:
    """The names that this architecture has for the query and value projections.

    Raises:
        ConfigError: none of the usual names is there.

    >>> query_and_value(["encoder.layer.0.attention.self.query.weight", "encoder.layer.0.attention.self.value.weight"])
    ('query', 'value')
    """
    last = {part for name in names for part in [name.removesuffix(".weight").rpartition(".")[2]]}
    for candidate in QUERY_AND_VALUE:
        if last.issuperset(candidate):
            return candidate
    raise ConfigError("no query and value projections are known for this architecture: name the adapter's targets.")


def named(layer: str, targets: Sequence[str]) -> bool:
    """Whether PEFT's rule puts an adapter here: the target is the layer's name, or a dotted end of it.

    >>> named("model.layers.0.self_attn.q_proj", ["q_proj"]), named("model.eq_proj", ["q_proj"])
    (True, False)
    """
    return any(layer == target or layer.endswith(f".{target}") for target in targets)


def _dense(at: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    return {f"{at}weight": (outputs, inputs)} | ({f"{at}bias": (outputs,)} if bias else {})


def _norm(at: str, width: int) -> Shapes:
    return {f"{at}weight": (width,), f"{at}bias": (width,)}
