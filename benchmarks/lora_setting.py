"""What the LoRA benchmarks share: a model, its adapter, and clients with blocks of tokens. Nothing is measured here."""

from __future__ import annotations

import torch

from atoll.data.examples import Tensors
from atoll.data.shakespeare import shakespeare
from atoll.data.text import tokenise
from atoll.rng import generator
from atoll.tasks.adapter import lora
from atoll.tasks.causal_lm import causal_lm
from atoll.tasks.pretrained import KNOWN, quiet, tokenizer
from atoll.types import ClientId, Dataset, Examples, Task

MODEL = "smollm2-135m"
RANK, ALPHA = 8, 16.0
TARGETS = ["q_proj", "v_proj"]
SMALL = {"vocabulary": 2048, "width": 256, "inner": 688, "layers": 4, "heads": 4, "key heads": 2}


def small_llama(folder: str, seed: int = 0) -> str:
    """A random Llama of 4 layers x 256 in `folder`, for smoke tests that fetch nothing; the folder again."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=SMALL["vocabulary"],
        hidden_size=SMALL["width"],
        intermediate_size=SMALL["inner"],
        num_hidden_layers=SMALL["layers"],
        num_attention_heads=SMALL["heads"],
        num_key_value_heads=SMALL["key heads"],
        tie_word_embeddings=True,
    )
    with quiet():
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def adapted(model: str, dtype: str) -> Task:
    """The model with the adapter that all LoRA benchmarks train; the same model and dtype give the same adapter."""
    return causal_lm(model, lora(RANK, ALPHA, targets=TARGETS), dtype)


def speakers(model: str, count: int, rows: int, length: int) -> dict[ClientId, dict[str, Examples]]:
    """`count` clients with `rows` blocks of `length` tokens each, all of them judged.

    A model that Atoll knows reads Shakespeare's speakers, through its own tokenizer; any other one reads random tokens.
    """
    if model not in KNOWN:
        dice = [generator(0, "tokens", client) for client in range(count)]
        ids = [torch.randint(SMALL["vocabulary"], (rows, length), generator=die) for die in dice]
        return {ClientId(f"c{i:02}"): {"train": Tensors({"input_ids": x, "labels": x})} for i, x in enumerate(ids)}
    texts = shakespeare(clients=count, test_fraction=0.0, server_fraction=0.0)
    words = tokenizer(model)
    found: dict[ClientId, dict[str, Examples]] = {}
    for client, splits in texts.clients.items():
        some = Dataset(texts.name, {client: splits}, None)
        blocks = tokenise(some, words, length).clients[client]["train"]
        whole = blocks.take(torch.arange(len(blocks) - 1))  # the last block is padded
        index = torch.arange(rows) % (len(blocks) - 1)
        found[client] = {"train": Tensors({name: x[index] for name, x in whole.items()})}
    return found
