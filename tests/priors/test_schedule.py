"""Schedules against diffusers, conversions against each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from scaledreamer.priors import _schedule
from scaledreamer.priors._schedule import FlowSchedule, Prediction, per_row, to_clean, to_noise


@pytest.mark.parametrize("beta_schedule", ["squaredcos_cap_v2", "scaled_linear", "linear"])
def test_vp_noises_like_diffusers(beta_schedule: Any) -> None:
    scheduler: Any = DDPMScheduler(beta_schedule=beta_schedule, prediction_type="v_prediction")
    schedule, prediction = _schedule.from_scheduler_config(dict(scheduler.config))
    assert prediction == "v_prediction"
    steps = torch.tensor([0, 1, 500, 998, 999])
    t = (steps + 1) / 1000
    clean, noise = torch.randn(2, 5, 3, 4, 4)
    alpha, sigma = per_row(schedule.alpha(t), clean), per_row(schedule.sigma(t), clean)
    assert torch.equal(schedule.timestep(t), steps)
    expected = scheduler.add_noise(clean, noise, steps)
    torch.testing.assert_close(alpha * clean + sigma * noise, expected, atol=1e-5, rtol=1e-5)
    velocity = _schedule.to_output("v_prediction", clean, noise, alpha, sigma)
    expected = scheduler.get_velocity(clean, noise, steps)
    torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=1e-5)


def test_fractions_round_to_steps_and_stay_inside() -> None:
    schedule = _schedule.cosine_schedule(1000)
    t = torch.tensor([1e-6, 0.0014, 0.0016, 0.5, 1.0])
    assert schedule.timestep(t).tolist() == [0, 0, 1, 499, 999]


def test_flow_noises_like_diffusers() -> None:
    scheduler: Any = FlowMatchEulerDiscreteScheduler()
    config = {**scheduler.config, "_class_name": "FlowMatchEulerDiscreteScheduler"}
    schedule, prediction = _schedule.from_scheduler_config(config)
    assert isinstance(schedule, FlowSchedule)
    assert prediction == "flow"
    t = scheduler.sigmas[[10, 500, 900]]
    clean, noise = torch.randn(2, 3, 1, 2, 2)
    noised = per_row(schedule.alpha(t), clean) * clean + per_row(schedule.sigma(t), clean) * noise
    expected = scheduler.scale_noise(clean, scheduler.timesteps[[10, 500, 900]], noise)
    torch.testing.assert_close(noised, expected)
    torch.testing.assert_close(schedule.timestep(t), scheduler.timesteps[[10, 500, 900]])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_vp_conversions_invert(kind: Prediction) -> None:
    _check_round_trip(kind, _schedule.cosine_schedule(), torch.tensor([0.02, 0.3, 0.6, 0.95]))


def test_flow_conversions_invert() -> None:
    _check_round_trip("flow", FlowSchedule(), torch.tensor([0.02, 0.3, 0.6, 1.0]))


def _check_round_trip(
    kind: Prediction, schedule: _schedule.VPSchedule | FlowSchedule, t: torch.Tensor
) -> None:
    clean, noise = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    # squares of float32 values sum to 1 to float32 precision only
    alpha = per_row(schedule.alpha(t), clean).double()
    sigma = (1 - alpha**2).sqrt() if kind != "flow" else 1 - alpha
    x_t = alpha * clean + sigma * noise
    output = _schedule.to_output(kind, clean, noise, alpha, sigma)
    torch.testing.assert_close(to_noise(kind, output, x_t, alpha, sigma), noise)
    torch.testing.assert_close(to_clean(kind, output, x_t, alpha, sigma), clean)


def test_unknown_prediction_is_an_error() -> None:
    with pytest.raises(ValueError, match="got 'noise'; known are epsilon"):
        _schedule.from_scheduler_config({"prediction_type": "noise"})
