"""The lean token loss is torch's cross-entropy, gradients included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from atoll.tasks import tokens
from atoll.tasks.tokens import IGNORE, count_tokens, next_tokens, token_accuracy, token_loss


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 9), st.integers(1, 20), st.integers(0, 2**31))
def test_equals_cross_entropy(n, length, vocabulary, chunk, seed):
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(n, length, vocabulary, generator=g) * 5).requires_grad_()
    targets = torch.randint(-1, vocabulary, (n, length), generator=g)
    targets = targets.masked_fill(targets < 0, IGNORE)
    targets[0, 0] = 0
    wanted = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    (wanted_grad,) = torch.autograd.grad(wanted, logits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_ROWS_ELEMENTS", chunk)
        loss = token_loss(logits, targets)
        (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(grad, wanted_grad)


def test_bf16_logits_give_a_float32_mean():
    logits = torch.randn(8, 64, 100).bfloat16().requires_grad_()
    targets = torch.randint(100, (8, 64))
    loss = token_loss(logits, targets)
    torch.testing.assert_close(loss, F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()))
    assert torch.autograd.grad(loss, logits)[0].dtype == torch.bfloat16


def test_nothing_judged_is_zero_and_has_no_gradient():
    logits = torch.randn(1, 3, 5, requires_grad=True)
    targets = torch.full((1, 3), IGNORE)
    loss = token_loss(logits, targets)
    assert loss == 0
    assert not torch.autograd.grad(loss, logits)[0].any()
    assert token_accuracy(logits, targets) == 0
    assert count_tokens(targets) == 0


def test_uniform_logits_cost_log_vocabulary():
    assert token_loss(torch.zeros(2, 3, 16), torch.zeros(2, 3, dtype=torch.int64)).item() == pytest.approx(2.772589)  # ln 16


def test_labels_win_over_the_mask():
    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 4]]),
        "labels": torch.tensor([[IGNORE, IGNORE, 3, 4]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0]]),
    }
    assert next_tokens(batch).tolist() == [[IGNORE, 3, 4, IGNORE]]


def test_accuracy_counts_judged_positions_only():
    logits = F.one_hot(torch.tensor([[1, 2, 0]]), 3).float()
    assert token_accuracy(logits, torch.tensor([[1, 0, IGNORE]])) == 0.5
