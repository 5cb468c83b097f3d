from __future__ import annotations

import pytest
import torch
from torch import nn

from scaledreamer.training.ema import Ema, ema_decay


def test_decay_warms_up_to_its_value() -> None:
    assert ema_decay(0.999, 0) == pytest.approx(0.1)
    assert ema_decay(0.999, 90) == pytest.approx(0.91)
    assert ema_decay(0.999, 10**6) == 0.999


def test_average_is_the_weighted_sum_of_all_past_weights() -> None:
    module = nn.Linear(3, 2, dtype=torch.float64)
    values = torch.randn(12, 2, 3, dtype=torch.float64)
    module.weight.data = values[0].clone()
    ema = Ema(module, decay=0.8)
    for step, value in enumerate(values[1:]):
        module.weight.data = value.clone()
        ema.update(module, step)

    shares = [1.0]
    for step in range(11):
        decay = min(0.8, (1 + step) / (10 + step))
        shares = [share * decay for share in shares] + [1 - decay]
    expected = torch.einsum("n,nij->ij", torch.tensor(shares, dtype=torch.float64), values)
    torch.testing.assert_close(ema.module.get_parameter("weight").data, expected)


def test_copy_is_frozen_separate_and_follows_buffers() -> None:
    module = nn.BatchNorm1d(2)
    ema = Ema(module, decay=0.9)
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    module(torch.randn(8, 2))
    assert not torch.equal(ema.module.get_buffer("running_mean"), module.running_mean)  # type: ignore[arg-type]
    ema.update(module, 0)
    assert torch.equal(ema.module.get_buffer("running_mean"), module.running_mean)  # type: ignore[arg-type]
