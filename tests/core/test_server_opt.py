"""Server optimisers against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from atoll import server_opt
from atoll.errors import ConfigError
from atoll.server_opt import ServerOpt


def steps(opt: ServerOpt, *ds: float) -> list[float]:
    """The step for each pseudo-gradient in turn."""
    state, found = opt.init({"w": torch.zeros(1)}), []
    for d in ds:
        step, state = opt.update({"w": torch.tensor([d])}, state)
        found.append(float(step["w"]))
    return found


def test_sgd() -> None:
    assert steps(server_opt.sgd(0.5), 2.0, -4.0) == [1.0, -2.0]


def test_momentum_sums_a_geometric_series() -> None:
    # With D = 1 always, v_n = (1 - b^n) / (1 - b)
    got = steps(server_opt.momentum(0.5, beta=0.9), *[1.0] * 8)
    assert got == pytest.approx([0.5 * (1 - 0.9**n) / 0.1 for n in range(1, 9)], rel=1e-5)
    # Nesterov looks one step further: D + b v_n = v_(n+1)
    ahead = steps(server_opt.momentum(0.5, beta=0.9, nesterov=True), *[1.0] * 8)
    assert ahead == pytest.approx([0.5 * (1 - 0.9**n) / 0.1 for n in range(2, 10)], rel=1e-5)


def test_adam_has_no_bias_correction() -> None:
    # D = 2 always: m_n = 2 (1 - b1^n); v_n = 4 + (tau^2 - 4) b2^n
    got = steps(server_opt.adam(0.1, 0.9, 0.99, 0.5), *[2.0] * 6)
    want = [0.1 * 2 * (1 - 0.9**n) / (math.sqrt(4 + (0.25 - 4) * 0.99**n) + 0.5) for n in range(1, 7)]
    assert got == pytest.approx(want, rel=1e-5)


def test_yogi_rises_and_falls_by_the_same_rule() -> None:
    # b1 = 0, b2 = .9, tau = 1: D = 2 lifts v from 1 to 1.4; D = 1 lowers it to 1.3; D^2 = v leaves it
    opt = server_opt.yogi(1.0, b1=0.0, b2=0.9, tau=1.0)
    want = [2 / (math.sqrt(1.4) + 1), 1 / (math.sqrt(1.3) + 1)]
    assert steps(opt, 2.0, 1.0) == pytest.approx(want, rel=1e-5)


def test_adagrad_falls_as_one_over_root_n() -> None:
    got = steps(server_opt.adagrad(1.0, tau=1e-3), *[3.0] * 100)
    assert got == pytest.approx([3 / (math.sqrt(1e-6 + 9 * n) + 1e-3) for n in range(1, 101)], rel=1e-4)


def test_a_step_changes_neither_the_state_nor_the_pseudo_gradient() -> None:
    for opt in (server_opt.momentum(), server_opt.adam(), server_opt.yogi(), server_opt.adagrad()):
        state = opt.init({"w": torch.zeros(1)})
        d = {"w": torch.tensor([3.0])}
        first, _ = opt.update(d, state)
        again, _ = opt.update(d, state)
        assert torch.equal(first["w"], again["w"])
        assert d["w"].tolist() == [3.0]


def test_state_is_kept_in_full_precision() -> None:
    opt = server_opt.momentum(1.0, beta=0.9)
    assert opt.init({"w": torch.zeros(1, dtype=torch.bfloat16)})["w"].dtype == torch.float32


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: server_opt.sgd(0.0),
        lambda: server_opt.momentum(beta=1.0),
        lambda: server_opt.adam(tau=0.0),
        lambda: server_opt.adam(b2=1.0),
        lambda: server_opt.yogi(b1=-0.1),
        lambda: server_opt.adagrad(lr=-1.0),
        lambda: server_opt.adam(lr=math.nan),
    ],
)
def test_what_diverges_is_refused(wrong: Callable[[], ServerOpt]) -> None:
    with pytest.raises(ConfigError):
        wrong()
