from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from scaledreamer.storage import load_tensors, save_tensors
from scaledreamer.training.optimizer import (
    OptimizerConfig,
    create_optimizer,
    learning_rate,
    load_state_tensors,
    set_learning_rate,
    state_tensors,
)


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=4)
    assert [learning_rate(config, step, 100) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("decay", "middle", "last"),
    [("constant", 1.0, 1.0), ("linear", 0.6, 0.2), ("cosine", 0.6, 0.2)],
)
def test_decays_start_at_the_peak_and_end_at_the_fraction(
    decay: str, middle: float, last: float
) -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=10, decay=decay, final_lr_fraction=0.2)  # type: ignore[arg-type]
    rates = [learning_rate(config, step, 111) for step in (10, 60, 110, 500)]
    assert rates == pytest.approx([1.0, middle, last, last])


def test_cosine_follows_the_formula() -> None:
    config = OptimizerConfig(lr=2.0, warmup_steps=0, final_lr_fraction=0.0)
    expected = 2.0 * 0.5 * (1 + math.cos(math.pi * 3 / 10))
    assert learning_rate(config, 3, 11) == pytest.approx(expected)


def steps(optimizer: torch.optim.Optimizer, module: nn.Module, count: int, first: int) -> None:
    for step in range(first, first + count):
        inputs = torch.full((3, 4), 0.1 * step + 0.2)
        optimizer.zero_grad()
        module(inputs).square().sum().backward()
        set_learning_rate(optimizer, 0.01 * (step + 1))
        optimizer.step()


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_state_survives_a_file_bit_for_bit(name: str, tmp_path: Path) -> None:
    config = OptimizerConfig(name=name, weight_decay=0.1, betas=(0.5, 0.9))  # type: ignore[arg-type]
    straight = nn.Linear(4, 2)
    resumed = nn.Linear(4, 2)
    optimizer = create_optimizer(straight, config)
    steps(optimizer, straight, 3, first=0)

    save_tensors(tmp_path / "o.safetensors", state_tensors(optimizer, straight))
    resumed.load_state_dict(straight.state_dict())
    other = create_optimizer(resumed, config)
    load_state_tensors(other, resumed, load_tensors(tmp_path / "o.safetensors"))

    steps(optimizer, straight, 3, first=3)
    steps(other, resumed, 3, first=3)
    assert torch.equal(straight.weight, resumed.weight)
    assert torch.equal(straight.bias, resumed.bias)


def test_a_group_of_its_own_keeps_its_rate() -> None:
    module = nn.ModuleDict({"main": nn.Linear(4, 2), "own": nn.Linear(2, 2)})
    groups = [{"params": list(module["own"].parameters()), "lr": 0.5, "betas": (0.9, 0.99)}]
    optimizer = create_optimizer(module, OptimizerConfig(lr=0.1), groups)
    set_learning_rate(optimizer, 0.01)
    main, own = optimizer.param_groups
    assert (main["lr"], main["betas"]) == (0.01, (0.0, 0.99))
    assert (own["lr"], own["betas"]) == (0.5, (0.9, 0.99))
    assert [len(group["params"]) for group in (main, own)] == [2, 2]


def test_state_of_another_module_is_refused() -> None:
    module, wide = nn.Linear(4, 2), nn.Linear(5, 2)
    optimizer = create_optimizer(module, OptimizerConfig())
    steps(optimizer, module, 1, first=0)
    tensors = state_tensors(optimizer, module)
    with pytest.raises(ValueError, match=r"weight/exp_avg has shape \(2, 4\)"):
        load_state_tensors(create_optimizer(wide, OptimizerConfig()), wide, tensors)
    with pytest.raises(ValueError, match="no parameter"):
        load_state_tensors(optimizer, module, {"scale/exp_avg": torch.zeros(2)})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0.0}, r"optimizer\.lr"),
        ({"betas": (0.0, 1.0)}, r"optimizer\.betas"),
        ({"ema_decay": 1.0}, r"optimizer\.ema_decay"),
        ({"final_lr_fraction": 2.0}, "final_lr_fraction"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"grad_clip_norm": 0.0}, "grad_clip_norm"),
    ],
)
def test_bad_values_are_named(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**fields)  # type: ignore[arg-type]
