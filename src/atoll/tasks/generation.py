"""A passage continued by a language model, to show before and after training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from atoll.errors import ConfigError
from atoll.local.binding import binding
from atoll.rng import seeded
from atoll.types import Task, Tree


def continue_text(
    of: Task | nn.Module,
    tokenizer: Any,
    prompt: str,
    tokens: int = 60,
    seed: int = 0,
    temperature: float = 0.0,
    parameters: Tree | None = None,
) -> str:
    """What the model writes after `prompt`, without the prompt.

    Args:
        of: a causal language model, or its task.
        tokenizer: the model's, from `pretrained.tokenizer`.
        tokens: at most this many are written.
        temperature: 0 takes the likeliest token each time; above 0, tokens are drawn, sharper when it is small.
        parameters: trained tensors to write with; None: those that the module has.

    Raises:
        ConfigError: the module can't generate, or `temperature` is negative.
    """
    module = of.module if isinstance(of, Task) else of
    if not hasattr(module, "generate"):
        raise ConfigError(f"{type(module).__name__} can't generate: give a causal language model of transformers.")
    if temperature < 0:
        raise ConfigError(f"temperature {temperature} must be 0 (the likeliest token) or above.")
    given = tokenizer(prompt, return_tensors="pt")
    drawn = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    training, bound = module.training, binding(module)
    module.eval()
    if parameters is not None:
        bound.check(parameters)
        bound.bind({name: parameters[name] for name in bound.params}, {name: parameters[name] for name in bound.buffers})
    try:
        with seeded(seed), torch.no_grad():
            written = module.generate(  # type: ignore[operator]
                input_ids=given["input_ids"],
                attention_mask=given["attention_mask"],
                max_new_tokens=tokens,
                pad_token_id=tokenizer.pad_token_id,
                **drawn,
            )
    finally:
        if parameters is not None:
            bound.restore()
        module.train(training)
    text: str = tokenizer.decode(written[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    return text
