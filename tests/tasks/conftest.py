"""Tiny models of each family, randomly initialised and saved as `from_pretrained` reads them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from atoll.local.binding import binding
from atoll.rng import seeded


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Callable[[str], str]:
    """The folder of a tiny model: "llama", "tied-llama", "gpt2", "bert", "t5" or "bart"."""
    folder = tmp_path_factory.mktemp("models")

    def at(family: str) -> str:
        place: Path = folder / family
        if not place.exists():
            with seeded(1):
                _FAMILIES[family]().save_pretrained(place)
        return str(place)

    return at


def _llama(tied: bool) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def _gpt2() -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2))


def _bert() -> torch.nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    return BertModel(config)


def _t5() -> torch.nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config)


def _bart() -> torch.nn.Module:
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=40,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=32,
    )
    return BartForConditionalGeneration(config)


_FAMILIES: dict[str, Callable[[], torch.nn.Module]] = {
    "llama": lambda: _llama(False),
    "tied-llama": lambda: _llama(True),
    "gpt2": _gpt2,
    "bert": _bert,
    "t5": _t5,
    "bart": _bart,
}


@pytest.fixture(scope="session")
def gradient():
    """The loss and its gradient with a module's parameters bound as plain tensors, as a fold binds them."""

    def of(task, batch, params):
        binding(task.module).bind(params, {})
        loss = task.loss(task.forward(task.module, batch), batch)
        return loss, torch.autograd.grad(loss, list(params.values()))

    return of


@pytest.fixture(scope="session")
def plain():
    """The trainable parameters of a module as plain leaf tensors."""

    def of(module):
        bound = binding(module)
        return {name: x.clone().requires_grad_() for name, x in bound.state().items() if name in bound.params}

    return of
